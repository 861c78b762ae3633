"""Components beside Clipped and Reinforce; the maths is tested in tests/ops/test_policy_loss_variants.py."""

import math
import re

import pytest
import torch

from rlhf.algorithms.policy_losses import (
    AdaptiveKLPenalised,
    Clipped,
    ClippedWeight,
    KLPenalised,
    Reinforce,
    SequenceClipped,
)

REAL = torch.ones(1, 4, dtype=torch.bool)
OLD = torch.full((1, 4), -2.0)
RATIOS = torch.tensor([[0.5, 0.85, 1.25, 4.5]])
NEW = OLD + RATIOS.log()
UP, DOWN = torch.ones(1, 4), -torch.ones(1, 4)


def test_clipped_reads_its_dual_bound() -> None:
    loss = Clipped(dual_clip=3.0)
    torch.testing.assert_close(loss(NEW, OLD, DOWN, REAL), torch.tensor([[0.8, 0.85, 1.25, 3.0]]))
    torch.testing.assert_close(Clipped()(NEW, OLD, DOWN, REAL)[0, 3], torch.tensor(4.5))
    assert loss.clipped(NEW, OLD, DOWN).tolist() == [[True, False, False, True]]
    assert Clipped().clipped(NEW, OLD, DOWN).tolist() == [[True, False, False, False]]


def test_clipped_weight_reads_both_of_its_bounds() -> None:
    loss = ClippedWeight(clip_low=0.25, clip_high=2.0)
    weights = torch.tensor([[0.75, 0.85, 1.25, 3.0]])
    torch.testing.assert_close(loss(NEW, OLD, UP, REAL), -weights * NEW)
    assert loss.clipped(NEW, OLD, UP).tolist() == [[True, False, False, True]]
    assert torch.equal(loss.clipped(NEW, OLD, DOWN), loss.clipped(NEW, OLD, UP))


def test_clipped_weight_has_no_lower_bound_unless_told() -> None:
    tiny = torch.full((1, 4), -40.0)
    torch.testing.assert_close(ClippedWeight()(tiny, OLD, UP, REAL), 40 * (tiny - OLD).exp())
    assert not ClippedWeight().clipped(tiny, OLD, UP).any()


@pytest.mark.parametrize(("low", "high"), [(0.0, 4.0), (1.0, 0.0)])
def test_a_weight_on_its_bound_is_not_clipped(low: float, high: float) -> None:
    loss = ClippedWeight(clip_low=low, clip_high=high)
    assert not loss.clipped(OLD, OLD, UP).any()


def test_a_weight_above_its_upper_bound_is_clipped() -> None:
    assert ClippedWeight(clip_high=0.2).clipped(NEW, OLD, UP).tolist() == [[False, False, True, True]]


# Three responses whose mean log-ratios are +0.02, −0.02 and 0.02 again, the last one shorter
ROWS = torch.tensor([[True, True, True], [True, True, True], [True, False, False]])
BEFORE = torch.zeros(3, 3)
AFTER = torch.tensor([[0.5, -0.54, 0.1], [-0.1, 0.0, 0.04], [0.02, 9.0, 9.0]])
SEQUENCE = SequenceClipped(clip_low=0.01, clip_high=0.01)


def test_a_whole_response_is_clipped_or_none_of_it() -> None:
    up, down = torch.ones(3, 3), -torch.ones(3, 3)
    assert SEQUENCE.clipped(AFTER, BEFORE, up, ROWS)[ROWS].tolist() == [True] * 3 + [False] * 3 + [True]
    assert SEQUENCE.clipped(AFTER, BEFORE, down, ROWS)[ROWS].tolist() == [False] * 3 + [True] * 3 + [False]


def test_without_a_mask_every_token_is_real() -> None:
    up, real = torch.ones(3, 3), torch.ones(3, 3).bool()
    found = SEQUENCE.clipped(AFTER, BEFORE, up)
    assert found.tolist() == [[True] * 3, [False] * 3, [True] * 3]
    assert torch.equal(found, SEQUENCE.clipped(AFTER, BEFORE, up, real))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_clipped_response_has_no_gradient_and_the_others_that_of_their_own_ratio(sign: float) -> None:
    after = AFTER.clone().requires_grad_()
    loss = SEQUENCE(after, BEFORE, torch.full((3, 3), sign), ROWS)
    loss.sum().backward()
    outside = SEQUENCE.clipped(AFTER, BEFORE, torch.full((3, 3), sign), ROWS)
    ratios = torch.tensor([[0.02], [-0.02], [0.02]]).exp().expand(3, 3)
    expected = torch.where(ROWS & ~outside, -sign * ratios, 0.0)
    torch.testing.assert_close(after.grad, expected)
    bounded = torch.where(outside, torch.tensor(1 + 0.01 * sign), ratios)
    torch.testing.assert_close(loss, torch.where(ROWS, -sign * bounded, 0.0))


def test_sequence_clips_are_the_papers() -> None:
    assert (SequenceClipped().clip_low, SequenceClipped().clip_high) == (3e-4, 4e-4)


@pytest.mark.parametrize("loss", [KLPenalised(coef=0.5), AdaptiveKLPenalised(coef=0.5)])
def test_penalised_losses_clip_nothing_and_charge_the_distance(loss) -> None:
    torch.testing.assert_close(loss(NEW, OLD, UP, REAL), -RATIOS)
    torch.testing.assert_close(loss.penalty(NEW, OLD, REAL, 0.5), 0.5 * (RATIOS - 1 - RATIOS.log()))
    assert not loss.clipped(NEW, OLD, UP).any()
    assert loss.initial_penalty == 0.5


@pytest.mark.parametrize("loss", [Clipped(), Reinforce(), SequenceClipped(), ClippedWeight()])
def test_other_losses_charge_nothing(loss) -> None:
    assert loss.initial_penalty == 0.0
    assert loss.penalty(NEW, OLD, REAL, 3.0).tolist() == [[0.0] * 4]
    assert loss.next_penalty(0.0, 99.0) == 0.0


def test_penalty_is_unbiased_in_value_and_gradient_for_the_kl_from_the_old_policy() -> None:
    generator = torch.Generator().manual_seed(0)
    theta, fixed = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    theta.requires_grad_()
    new, old = theta.log_softmax(0)[:, None], fixed.log_softmax(0)[:, None]
    exact = (old.exp() * (old - new)).sum()
    sampled = (old.exp() * KLPenalised().penalty(new, old, torch.ones(6, 1).bool(), 1.0)).sum()
    torch.testing.assert_close(sampled, exact)
    first, second = (torch.autograd.grad(x, theta, retain_graph=True)[0] for x in (sampled, exact))
    torch.testing.assert_close(first, second)


def test_the_adaptive_penalty_doubles_and_halves_outside_its_band() -> None:
    loss = AdaptiveKLPenalised(target=0.03)
    found = [loss.next_penalty(8.0, kl) for kl in (0.0, 0.0199, 0.0201, 0.03, 0.0449, 0.0451, 1.0)]
    assert found == [4.0, 4.0, 8.0, 8.0, 8.0, 16.0, 16.0]
    assert KLPenalised().next_penalty(8.0, 1.0) == 8.0


def test_the_adaptive_penalty_stays_where_it_can_come_back_from() -> None:
    loss = AdaptiveKLPenalised(coef=2.0, target=0.03)
    low, high = 2.0, 2.0
    for _ in range(30):
        low, high = loss.next_penalty(low, 0.0), loss.next_penalty(high, 1.0)
    assert (low, high) == (2.0 / 1024, 2.0 * 1024)


@pytest.mark.parametrize("kl", [0.75 / 1.5, 1.5 * 0.75])
def test_the_adaptive_penalty_stays_on_the_edge_of_its_band(kl: float) -> None:
    assert AdaptiveKLPenalised(target=0.75).next_penalty(8.0, kl) == 8.0


@pytest.mark.parametrize("poison", [math.nan, 1e9, -1e9])
@pytest.mark.parametrize(
    "loss", [Clipped(dual_clip=2.0), SequenceClipped(), ClippedWeight(), KLPenalised(), AdaptiveKLPenalised()]
)
def test_padding_never_reaches_loss_penalty_or_gradient(loss, poison: float) -> None:
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    draws = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    found = []
    for fill in (0.0, poison):
        logprobs, old, advantages = (torch.where(mask, x, fill) for x in draws)
        logprobs.requires_grad_()
        surrogate = loss(logprobs, old, advantages, mask)
        penalty = loss.penalty(logprobs, old, mask, 0.5)
        (surrogate + penalty).sum().backward()
        found.append((surrogate, penalty, logprobs.grad, loss.clipped(logprobs, old, advantages, mask)[mask]))
        assert all((part[~mask] == 0).all() for part in found[-1][:3])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("component", "values", "message"),
    [
        (Clipped, {"dual_clip": 1.2}, "Clipped.dual_clip must be above 1 + clip_high (1.2), got 1.2"),
        (Clipped, {"dual_clip": math.nan}, "Clipped.dual_clip must be above 1 + clip_high (1.2), got nan"),
        (SequenceClipped, {"clip_low": 2.0}, "SequenceClipped.clip_low must be from 0 to 1, got 2.0"),
        (SequenceClipped, {"clip_high": -1.0}, "SequenceClipped.clip_high must not be negative, got -1.0"),
        (ClippedWeight, {"clip_low": 1.1}, "ClippedWeight.clip_low must be from 0 to 1, got 1.1"),
        (ClippedWeight, {"clip_low": -0.1}, "ClippedWeight.clip_low must be from 0 to 1, got -0.1"),
        (ClippedWeight, {"clip_high": -0.1}, "ClippedWeight.clip_high must not be negative, got -0.1"),
        (KLPenalised, {"coef": 0.0}, "KLPenalised.coef must be positive, got 0.0"),
        (AdaptiveKLPenalised, {"coef": 0.0}, "AdaptiveKLPenalised.coef must be positive, got 0.0"),
        (AdaptiveKLPenalised, {"target": 0.0}, "AdaptiveKLPenalised.target must be positive, got 0.0"),
    ],
)
def test_values_out_of_range_are_refused(component, values, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        component(**values)


@pytest.mark.parametrize(
    ("component", "values"),
    [
        (Clipped, {"dual_clip": 1.3}),
        (SequenceClipped, {"clip_low": 0.0}),
        (SequenceClipped, {"clip_low": 1.0}),
        (SequenceClipped, {"clip_high": 0.0}),
        (ClippedWeight, {"clip_low": 0.0}),
        (ClippedWeight, {"clip_low": 1.0}),
        (ClippedWeight, {"clip_high": 0.0}),
    ],
)
def test_a_bound_may_lie_on_its_limit(component, values: dict[str, float]) -> None:
    made = component(**values)
    assert {name: getattr(made, name) for name in values} == values
