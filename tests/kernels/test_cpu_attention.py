"""Attention of rows that stand end to end, in C++, against the definition in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.kernels import cpu_attention
from rlhf.kernels.cpu_attention import RowTable, has_row_attention, row_attention

LENGTHS = [9, 3, 1, 20, 70, 33, 5]
"""Own tokens of each row."""
LEADERS, SAME = [0, 0, 2, 3, 4, 4, 3], [0, 5, 0, 0, 0, 41, 19]
"""Row 1 begins with 5 tokens of row 0, row 5 with 41 of row 4, row 6 with all but one of row 3."""
N = sum(LENGTHS)


def states(heads: int, key_heads: int, dim: int) -> list[Tensor]:
    """Query, key, value and an upstream gradient, (heads, N, dim) each, strided as slices of a projection."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(N, 2, count, dim, generator=generator)[:, 1].transpose(0, 1)
        for count in (heads, key_heads, key_heads, heads)
    ]


def table() -> RowTable:
    return RowTable.of(LENGTHS, LEADERS, SAME)


def places(row: int) -> list[int]:
    """Where the tokens of a row stand, its beginning included."""
    first = [sum(LENGTHS[:number]) for number in range(len(LENGTHS))]
    leader = first[LEADERS[row]]
    return [*range(leader, leader + SAME[row]), *range(first[row], first[row] + LENGTHS[row])]


def defined(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
    """(N, heads, dim): each token over those of its row that are not after it, nor too far before."""
    groups, found = len(query) // len(key), torch.zeros_like(query.transpose(0, 1))
    for row, length in enumerate(LENGTHS):
        tokens = places(row)
        for own in range(SAME[row], SAME[row] + length):
            seen = tokens[max(0, own + 1 - (window or N)) : own + 1]
            for head in range(len(query)):
                scores = scale * (key[head // groups, seen] @ query[head, tokens[own]])
                found[tokens[own], head] = scores.softmax(0) @ value[head // groups, seen]
    return found


def gradients(outcome: Tensor, given: list[Tensor], upstream: Tensor) -> list[Tensor]:
    return [outcome.detach(), *torch.autograd.grad((outcome * upstream.transpose(0, 1)).sum(), given)]


def learning(parts: list[Tensor]) -> list[Tensor]:
    return [part.detach().requires_grad_() for part in parts]


@pytest.fixture(autouse=True)
def compiler() -> None:
    if cpu_attention.attention_library() is None:
        pytest.skip("no compiler")


@pytest.mark.parametrize(("heads", "key_heads", "dim"), [(2, 2, 32), (4, 2, 4), (3, 1, 20)])
@pytest.mark.parametrize("window", [None, 3, 40])
def test_results_and_gradients_are_those_of_the_definition(
    heads: int, key_heads: int, dim: int, window: int | None
) -> None:
    *given, upstream = states(heads, key_heads, dim)
    exact = learning([part.double() for part in given])
    wanted = gradients(defined(*exact, 0.3, window), exact, upstream.double())
    given = learning(given)
    found = gradients(row_attention(*given, table(), scale=0.3, window=window), given, upstream)
    for part, wanted_part in zip(found, wanted, strict=True):
        torch.testing.assert_close(part.double(), wanted_part, rtol=0, atol=2e-5)


def test_a_row_is_the_same_to_the_bit_whatever_stands_beside_it() -> None:
    """The last row alone and with its own beginning; others hold NaN, and two threads share the work."""
    *given, _ = states(4, 2, 32)
    alone = [part[:, places(6)] for part in given]
    wanted = row_attention(*alone, RowTable.of([24], [0], [0]), scale=0.3, window=None)
    for row in (0, 1, 2, 4, 5):
        for part in given:
            part[:, places(row)] = torch.nan
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    found = row_attention(*given, table(), scale=0.3, window=None)
    torch.set_num_threads(threads)
    assert torch.equal(found[-5:], wanted[-5:])
    assert found[places(0)].isnan().all()


def test_what_is_attended_to_by_two_rows_gets_the_gradient_of_both() -> None:
    """d/dv of the sum of all results is the sum of weights: with equal scores, 1/(number seen)."""
    value = torch.zeros(1, 4, 8, requires_grad=True)
    query = key = torch.zeros(1, 4, 8)
    rows = RowTable.of([2, 1, 1], [0, 0, 0], [0, 1, 1])  # (a, b), (a, c), (a, d)
    row_attention(query, key, value, rows, scale=1.0, window=None).sum().backward()
    assert value.grad is not None
    assert value.grad[0, :, 0].tolist() == [1 + 3 * 0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("change", ["double", "half", "other values", "long rows"])
def test_what_is_not_faster_or_not_there_is_left_to_torch(change: str) -> None:
    query, key, value, _ = states(2, 2, 4)
    rows: Any = table()
    assert has_row_attention(query, key, value, rows)
    if change == "double":
        query, key, value = query.double(), key.double(), value.double()
    elif change == "half":
        query, key, value = query.bfloat16(), key.bfloat16(), value.bfloat16()
    elif change == "other values":
        value = value[..., :2]
    else:
        rows = RowTable.of([cpu_attention.LONGEST], [0], [0])
        assert has_row_attention(query, key, value, rows)
        rows = RowTable.of([cpu_attention.LONGEST - 3, 4], [0, 0], [0, cpu_attention.LONGEST - 3])
    assert not has_row_attention(query, key, value, rows)
