import statistics

import pytest
import torch
from torch.autograd import gradcheck

from rlhf.ops.variance import explained_variance

MASK = torch.arange(5) < torch.tensor([[5], [3], [1], [2]])


def returns() -> torch.Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 2


def test_a_perfect_critic_explains_everything(one_rank) -> None:
    assert explained_variance(returns(), returns(), MASK, one_rank).item() == 1.0


def test_a_constant_critic_explains_nothing(one_rank) -> None:
    values = torch.full((4, 5), 0.5, dtype=torch.float64)
    assert explained_variance(values, returns(), MASK, one_rank).item() == pytest.approx(0, abs=1e-12)


def test_a_wrong_critic_explains_less_than_nothing(one_rank) -> None:
    assert explained_variance(-returns(), returns(), MASK, one_rank).item() == pytest.approx(
        -3
    )  # Var(2R) = 4


def test_half_of_the_returns_explains_three_quarters(one_rank) -> None:
    assert explained_variance(returns() / 2, returns(), MASK, one_rank).item() == pytest.approx(0.75)


@pytest.mark.parametrize("value", [0.0, 0.7, -12.3])
def test_equal_returns_leave_it_undefined(value: float, one_rank) -> None:
    equal = torch.full((4, 5), value)
    assert explained_variance(returns().float(), equal, MASK, one_rank).isnan()


@pytest.mark.parametrize("poison", [float("nan"), 1e9, -1e9])
def test_padding_is_not_read(poison: float, one_rank) -> None:
    values = returns() / 3
    dirty = [torch.where(MASK, x, poison) for x in (values, returns())]
    assert torch.equal(
        explained_variance(*dirty, MASK, one_rank), explained_variance(values, returns(), MASK, one_rank)
    )


def test_two_ranks_are_one_sample(across_ranks, one_rank) -> None:
    values = torch.where(MASK, returns() / 2 + 0.1 * returns().square(), 0.0)
    whole = explained_variance(values, returns(), MASK, one_rank)

    def work(rank, total):
        rows = slice(2 * rank, 2 * rank + 2)
        return explained_variance(values[rows], returns()[rows], MASK[rows], total)

    for part in across_ranks(work, 2):
        torch.testing.assert_close(part, whole)


def test_explained_variance_is_its_definition_over_the_real_tokens(one_rank) -> None:
    values = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    real, residual = returns()[MASK], (returns() - values)[MASK]
    expected = 1 - statistics.pvariance(residual.tolist()) / statistics.pvariance(real.tolist())
    found = explained_variance(values, returns(), MASK, one_rank)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_explained_variance_is_differentiable(one_rank) -> None:
    values = (returns() / 3).requires_grad_()
    assert gradcheck(lambda v: explained_variance(v, returns(), MASK, one_rank), (values,))
