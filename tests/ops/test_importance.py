import math

import pytest
import torch
from torch import Tensor

from rlhf.ops.importance import masked_weights, sequence_log_weights, token_log_weights, truncated_weights

MASK = torch.tensor([[True, True, True], [True, True, False], [False, False, False]])
OLD = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -4.0, 9.0], [9.0, 9.0, 9.0]])
SAMPLER = torch.tensor([[-1.5, -1.0, -3.0], [-2.0, -1.0, 5.0], [5.0, 5.0, 5.0]])


def test_token_weights_compare_each_token_by_itself() -> None:
    found = token_log_weights(OLD, SAMPLER, MASK)
    assert found.tolist() == [[0.5, -1.0, 0.0], [1.0, -3.0, 0.0], [0.0, 0.0, 0.0]]


def test_sequence_weights_are_the_products_over_the_response() -> None:
    found = sequence_log_weights(OLD, SAMPLER, MASK)
    assert found.tolist() == [[-0.5, -0.5, -0.5], [-2.0, -2.0, 0.0], [0.0, 0.0, 0.0]]


def test_sequence_weights_turn_an_expectation_under_the_sampler_into_one_under_the_scorer() -> None:
    """Two tokens out of three each, all nine responses: Σ_y π_s(y)·w(y)·f(y) = Σ_y π_old(y)·f(y)."""
    generator = torch.Generator().manual_seed(0)
    tables = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64).log_softmax(-1)
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    old, sampler = (torch.stack([t[0, pairs[:, 0]], t[1 + pairs[:, 0], pairs[:, 1]]], 1) for t in tables)
    f, real = torch.randn(9, generator=generator, dtype=torch.float64), torch.ones(9, 2).bool()
    weights = truncated_weights(sequence_log_weights(old, sampler, real), real, cap=1e9)[:, 0]
    torch.testing.assert_close((sampler.sum(1).exp() * weights) @ f, old.sum(1).exp() @ f)


def test_truncation_bounds_from_above_only() -> None:
    logs = torch.tensor([[math.log(3.0), math.log(2.0), math.log(0.01)]])
    found = truncated_weights(logs, torch.ones(1, 3).bool(), cap=2.0)
    torch.testing.assert_close(found, torch.tensor([[2.0, 2.0, 0.01]]))


def test_masking_drops_what_is_out_of_bounds_and_keeps_the_weight_of_the_rest() -> None:
    logs = torch.tensor([2.5, 2.0, 1.3, 1.0, 0.5, 0.4]).log()[None]
    found = masked_weights(logs, torch.ones(1, 6).bool(), low=0.45, high=2.2)
    torch.testing.assert_close(found, torch.tensor([[0.0, 2.0, 1.3, 1.0, 0.5, 0.0]]))


@pytest.mark.parametrize(("low", "high"), [(1.0, 2.0), (0.5, 1.0), (1.0, 1.0)])
def test_a_weight_on_a_bound_is_kept(low: float, high: float) -> None:
    found = masked_weights(torch.zeros(1, 1), torch.ones(1, 1).bool(), low=low, high=high)
    assert found.item() == 1.0


@pytest.mark.parametrize("poison", [float("nan"), 1e9, -1e9])
@pytest.mark.parametrize("logs", [token_log_weights, sequence_log_weights])
def test_padding_is_not_read_and_weighs_nothing(logs, poison: float) -> None:
    def weights(fill: float) -> list[Tensor]:
        old, sampler = (torch.where(MASK, x, fill) for x in (OLD, SAMPLER))
        log_weights = logs(old, sampler, MASK)
        truncated = truncated_weights(log_weights, MASK, cap=2.0)
        return [truncated, masked_weights(log_weights, MASK, low=0.5, high=2.0)]

    for clean, dirty in zip(weights(0.0), weights(poison), strict=True):
        assert torch.equal(clean, dirty)
        assert (clean[~MASK] == 0).all()


def test_weights_are_constants_of_the_loss() -> None:
    assert not token_log_weights(OLD.clone().requires_grad_(), SAMPLER, MASK).requires_grad
