"""A token from each row's distribution, in C++ and by torch."""

import pytest
import torch
from torch import Tensor

from rlhf.kernels import drawing
from rlhf.kernels.cpu_decode import has_draw
from rlhf.kernels.drawing import drawn


@pytest.fixture(params=["compiled", "torch"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(drawing, "has_draw", lambda logits: False)
    elif not has_draw(torch.zeros(1)):
        pytest.skip("no compiler")
    return request.param


def rows(count: int, columns: int, spread: float = 4.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(columns)
    noise = torch.rand(count, generator=generator, dtype=torch.float64)
    return spread * torch.randn(count, columns, generator=generator), noise


def by_definition(
    logits: Tensor, noise: Tensor, temperature: float, floors: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """In float64."""
    z = logits.double() / temperature
    if floors is not None:
        z = z.masked_fill(logits < floors[:, None], -torch.inf)
    p = z.softmax(1)
    tokens = (p.cumsum(1) <= noise[:, None]).sum(1)
    plogp = torch.where(p > 0, p * p.log(), 0.0)
    return tokens, p.gather(1, tokens[:, None]).log().squeeze(1), -plogp.sum(1)


@pytest.mark.parametrize(("count", "columns"), [(2_000, 11), (300, 511), (300, 512), (300, 1_537)])
@pytest.mark.parametrize(("temperature", "cut"), [(1.0, False), (0.6, False), (1.7, True)])
def test_tokens_logprobs_and_entropies_are_those_of_the_definition(
    kernel: str, count: int, columns: int, temperature: float, cut: bool
) -> None:
    logits, noise = rows(count, columns)
    floors = logits.topk(4, dim=1).values[:, -1] if cut else None
    tokens, logprobs, entropies = by_definition(logits, noise, temperature, floors)
    found = drawn(logits, noise, temperature=temperature, floors=floors)
    assert torch.equal(found.tokens, tokens)
    torch.testing.assert_close(found.logprobs, logprobs.float(), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.entropies, entropies.float(), rtol=0, atol=1e-5)


def test_rows_may_lie_apart_in_memory(kernel: str) -> None:
    logits, noise = rows(50, 20)
    wanted = drawn(logits[:, :7].contiguous(), noise, temperature=1.0)
    for view in (logits[:, :7], logits[:, :7].t().contiguous().t()):
        found = drawn(view, noise, temperature=1.0)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_rare_token_among_many_keeps_its_probability(kernel: str) -> None:
    """4096 tokens of 2⁻³⁰ each beside one that has the rest: float32 sums would lose every one of them."""
    columns, rare = 4_097, 2.0**-30
    logits = torch.full((1, columns), 0.0)
    logits[0, 0] = torch.tensor(1 - 4_096 * rare, dtype=torch.float64).log() - torch.tensor(rare).log()
    for number in (1, 2, 777, 4_096):
        level = torch.tensor([1 - (4_096 - number + 0.5) * rare], dtype=torch.float64)
        found = drawn(logits, level, temperature=1.0)
        assert abs(int(found.tokens[0]) - number) <= 1  # the big one's logit is a float32
        torch.testing.assert_close(found.logprobs, torch.tensor([rare]).log(), rtol=0, atol=1e-5)


def test_impossible_tokens_are_not_drawn(kernel: str) -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]]).expand(2, 5)
    found = drawn(logits, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), temperature=1.0)
    assert found.tokens.tolist() == [1, 3]
    assert found.entropies.isfinite().all()


def test_what_lies_below_the_floor_is_not_drawn(kernel: str) -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0, 0.0]]).expand(1_000, 5)
    grid = (torch.arange(1_000, dtype=torch.float64) + 0.5) / 1_000
    found = drawn(logits, grid, temperature=1.0, floors=torch.full((1_000,), 2.0))
    assert found.tokens.unique().tolist() == [0, 2, 3]
    shares = torch.tensor([3.0, 2.0, 2.0]).softmax(0)
    torch.testing.assert_close(found.logprobs.exp().unique(), shares[[1, 0]])


def test_a_logit_that_is_no_number_shows_in_the_logprob(kernel: str) -> None:
    for bad in (torch.nan, torch.inf):
        logits = torch.zeros(1, 700)
        logits[0, 600] = bad
        found = drawn(logits, torch.tensor([0.5], dtype=torch.float64), temperature=1.0)
        assert found.logprobs.isnan().all()
        assert 0 <= int(found.tokens[0]) < 700


def test_a_row_does_not_depend_on_the_others(kernel: str) -> None:
    logits, noise = rows(40, 1_030)
    whole = drawn(logits, noise, temperature=0.9)
    for row in (0, 17, 39):
        alone = drawn(logits[row : row + 1], noise[row : row + 1], temperature=0.9)
        assert all(torch.equal(a, b[row : row + 1]) for a, b in zip(alone, whole, strict=True))
