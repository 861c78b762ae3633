"""Attention of one token a row over a cache, in C++."""

import pytest
import torch

from rlhf.kernels.cpu_decode import decode_attention, has_attention

LENGTHS = [0, 5, 11, 12]


@pytest.mark.parametrize("dim", [6, 32, 64, 128])
@pytest.mark.parametrize(("heads", "key_heads"), [(2, 2), (6, 2)])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_row_attends_to_its_own_tokens(
    dim: int, heads: int, key_heads: int, window: int | None, dtype: torch.dtype
) -> None:
    """softmax(scale · K·q)·V in float64 over columns that exist; the others hold NaN."""
    generator = torch.Generator().manual_seed(0)
    rows, columns, scale = len(LENGTHS), 13, 0.3

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    query = normal(rows, 2, heads, dim)[:, 1]  # strided, as a projection's slices are
    key, value = normal(rows, 2, key_heads, dim)[:, 0], normal(rows, key_heads, dim)
    keys, values = normal(rows, key_heads, columns, dim), normal(rows, key_heads, columns, dim)
    lengths = torch.tensor(LENGTHS)
    if not has_attention(query, keys, values):
        pytest.skip("no compiler")
    unused = torch.arange(columns) >= lengths[:, None]
    keys[unused[:, None].expand(-1, key_heads, -1)] = torch.nan
    values[unused[:, None].expand(-1, key_heads, -1)] = torch.nan
    found = decode_attention(query, key, value, keys, values, lengths, scale=scale, window=window)
    for row, length in enumerate(LENGTHS):
        assert torch.equal(keys[row, :, length], key[row])
        assert torch.equal(values[row, :, length], value[row])
        first = 0 if window is None else max(0, length + 1 - window)
        for head in range(heads):
            k, v = (
                part[row, head * key_heads // heads, first : length + 1].double() for part in (keys, values)
            )
            exact = (scale * k @ query[row, head].double()).softmax(0) @ v
            error = (found[row, head].double() - exact).abs().max()
            assert error < (1e-5 if dtype == torch.float32 else 2e-2)


def test_other_kinds_of_numbers_are_left_to_torch() -> None:
    states = torch.zeros(1, 1, 1, 8, dtype=torch.float64)
    assert not has_attention(states[:, :, 0], states, states)
    assert not has_attention(states[:, :, 0].float(), states.float(), states.float()[..., :4])
