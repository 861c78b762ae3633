"""Ties and choices: outcomes from the definitions with strengths π = eˢ, by pencil, and at the limits."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from rlhf.ops.preference_losses import bradley_terry
from rlhf.ops.ranking_losses import (
    best_response_loss,
    davidson_outcomes,
    outcome_loss,
    prompt_mean,
    rao_kupper_outcomes,
)

MODELS = [rao_kupper_outcomes, davidson_outcomes]


def row(*x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


GAPS = row(-3.0, -0.4, 0.0, 0.7, 2.5)


def test_rao_kupper_is_its_definition_in_strengths() -> None:
    """P(i ≻ j) = πᵢ/(πᵢ + θπⱼ), P(tie) = (θ² − 1)πᵢπⱼ/((πᵢ + θπⱼ)(θπᵢ + πⱼ)); θ = 2 makes P(tie at 0) ⅓."""
    win, tie, loss = (x.exp() for x in rao_kupper_outcomes(GAPS, tie_probability=1 / 3))
    p, theta = GAPS.exp(), 2.0
    torch.testing.assert_close(win, p / (p + theta))
    torch.testing.assert_close(loss, 1 / (1 + theta * p))
    torch.testing.assert_close(tie, (theta**2 - 1) * p / ((p + theta) * (theta * p + 1)))


def test_davidson_is_its_definition_in_strengths() -> None:
    """P(i ≻ j) = πᵢ/(πᵢ + πⱼ + ν√(πᵢπⱼ)), P(tie) = ν√(πᵢπⱼ)/(…); ν = ½ makes P(tie at 0) ⅕."""
    win, tie, loss = (x.exp() for x in davidson_outcomes(GAPS, tie_probability=0.2))
    p, nu = GAPS.exp(), 0.5
    total = p + 1 + nu * p.sqrt()
    torch.testing.assert_close(win, p / total)
    torch.testing.assert_close(loss, 1 / total)
    torch.testing.assert_close(tie, nu * p.sqrt() / total)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("probability", [0.05, 0.3, 0.9])
def test_outcomes_sum_to_one_and_the_parameter_is_the_tie_between_equals(
    model: object, probability: float
) -> None:
    win, tie, loss = (x.exp() for x in model(GAPS, tie_probability=probability))  # type: ignore[operator]
    torch.testing.assert_close(win + tie + loss, torch.ones_like(win))
    assert tie[2].item() == pytest.approx(probability, abs=1e-12)
    assert tie.argmax() == 2


def test_without_the_ties_davidson_is_bradley_terry() -> None:
    win, _, loss = davidson_outcomes(GAPS, tie_probability=0.4)
    torch.testing.assert_close(win - loss, GAPS)


@pytest.mark.parametrize("model", MODELS)
def test_rare_ties_leave_bradley_terry(model: object) -> None:
    outcomes = model(GAPS, tie_probability=1e-9)  # type: ignore[operator]
    expected = bradley_terry(GAPS, torch.zeros_like(GAPS), torch.zeros_like(GAPS))
    torch.testing.assert_close(outcome_loss(outcomes, 1.0), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("model", MODELS)
def test_loss_of_ties_pulls_the_gap_to_zero_and_is_finite_far_away(model: object) -> None:
    gap = row(-1e4, -1.0, 0.0, 1.0, 1e4).requires_grad_()
    loss = outcome_loss(model(gap, tie_probability=0.3), 0.5)  # type: ignore[operator]
    loss.sum().backward()
    assert loss.isfinite().all()
    assert gap.grad is not None
    assert gap.grad[2].item() == pytest.approx(0, abs=1e-15)
    assert (gap.grad * gap.detach().sign() >= 0).all()
    assert gap.grad[3].item() == pytest.approx(-gap.grad[1].item())


@pytest.mark.parametrize("model", MODELS)
def test_outcome_loss_is_differentiable(model: object) -> None:
    label = row(1.0, 0.5, 0.0, 0.7, 0.5)
    assert gradcheck(
        lambda gap: outcome_loss(model(gap, tie_probability=0.3), label),  # type: ignore[operator]
        GAPS.clone().requires_grad_(),
    )


def test_a_label_is_a_tie_at_one_half_and_a_probability_elsewhere() -> None:
    outcomes = (row(-1.0, -1.0, -1.0, -1.0), row(-2.0, -2.0, -2.0, -2.0), row(-4.0, -4.0, -4.0, -4.0))
    found = outcome_loss(outcomes, row(1.0, 0.5, 0.0, 0.75))
    torch.testing.assert_close(found, row(1.0, 2.0, 4.0, 1.75))


def test_the_best_of_two_is_bradley_terry() -> None:
    scores = torch.stack([GAPS, torch.zeros_like(GAPS)], 1)
    best = torch.tensor([True, False]).expand(5, 2)
    found = best_response_loss(scores, torch.ones(5, 2, dtype=torch.bool), best)
    torch.testing.assert_close(found, bradley_terry(GAPS, torch.zeros(5).double(), torch.zeros(5).double()))


def test_the_best_of_three_by_pencil_and_poison_where_there_is_none() -> None:
    """Scores 0, log 2, log 3: shares 1/6, 2/6, 3/6; a shared first place is the mean of both."""
    scores = torch.stack([row(0.0, math.log(2), math.log(3), math.nan)] * 2)
    real = torch.tensor([[True, True, True, False]] * 2)
    best = torch.tensor([[False, False, True, False], [False, True, True, False]])
    expected = row(math.log(2), (math.log(2) + math.log(3)) / 2)
    torch.testing.assert_close(best_response_loss(scores, real, best), expected)


def test_prompt_mean_weighs_prompts_alike() -> None:
    found = prompt_mean(row(1.0, 3.0, 8.0), torch.tensor([0, 0, 2]), 3)
    assert found.tolist() == [2.0, 0.0, 8.0]
