"""E7: where each placement of the KL leads, by exact gradient ascent on an eight-armed bandit."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.advantages import NoBaseline
from rlhf.algorithms.aggregation import ConstantLength
from rlhf.algorithms.kl import KL, ExactKLInLoss, K2InLoss, KLInLoss, KLInReward, NoKL
from rlhf.algorithms.policy_gradient import PolicyGradient
from rlhf.algorithms.policy_losses import KLPenalised, Reinforce
from rlhf.ops.kl import k1, k2, k3

MASK = torch.ones(8, 1, dtype=torch.bool)


def climb(ref: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Probabilities after ascent from π_ref; ``loss`` maps log-probs (8, 1) of the arms to losses (8, 1)."""
    theta = ref.log().clone().requires_grad_()
    for _ in range(2000):
        logprobs = theta.log_softmax(0)[:, None]
        expected = (logprobs.detach().exp() * loss(logprobs)).sum()
        (gradient,) = torch.autograd.grad(expected, theta)
        with torch.no_grad():
            theta -= 0.5 * gradient
    return theta.detach().softmax(0)


def rewarded(r: Tensor, kl: KLInReward | KLInLoss, ref: Tensor) -> Callable[[Tensor], Tensor]:
    """The production loss: REINFORCE on the score with the KL where ``kl`` puts it."""
    log_ref, coef = ref.log()[:, None], kl.initial_coef

    def loss(logprobs: Tensor) -> Tensor:
        old = logprobs.detach()
        advantages = r[:, None] + kl.reward(old, log_ref, MASK, coef)
        advantages = advantages - (old.exp() * advantages).sum()
        return Reinforce()(logprobs, old, advantages, MASK) + kl.loss(logprobs, log_ref, MASK, coef)

    return loss


def forward_kl_point(r: Tensor, ref: Tensor, beta: float) -> Tensor:
    """β·π_ref/(c − r), c > max r by bisection on the sum."""
    low, high = r.max() + 1e-12, r.max() + 1e3
    for _ in range(200):
        c = (low + high) / 2
        low, high = (c, high) if (beta * ref / (c - r)).sum() > 1 else (low, c)
    return beta * ref / (c - r)


def test_kl_in_reward_leads_to_the_tilted_reference(testbed) -> None:
    r, ref = testbed.bandit_r, testbed.bandit_ref
    found = climb(ref, rewarded(r, KLInReward(coef=1.0), ref))
    assert (found - (ref.log() + r).softmax(0)).abs().max() <= 1e-8


def test_k2_as_a_loss_of_one_step_leads_to_the_tilted_reference(testbed) -> None:
    r, ref = testbed.bandit_r, testbed.bandit_ref
    score = rewarded(r, KLInReward(coef=0.0), ref)
    found = climb(ref, lambda logprobs: score(logprobs) + k2(logprobs, ref.log()[:, None]))
    assert (found - (ref.log() + r).softmax(0)).abs().max() <= 1e-8


def test_kl_in_loss_leads_to_the_forward_kl_point_and_not_to_the_tilted_reference(testbed) -> None:
    r, ref = testbed.bandit_r, testbed.bandit_ref
    found = climb(ref, rewarded(r, KLInLoss(coef=1.0), ref))
    assert (found - forward_kl_point(r, ref, 1.0)).abs().max() <= 1e-12
    star = (ref.log() + r).softmax(0)
    assert (found * (found / star).log()).sum().item() == pytest.approx(0.0088, abs=5e-5)


def test_three_rounds_with_the_reference_reset_divide_the_coefficient_by_three(testbed) -> None:
    """E17: each round starts from the optimum of the one before and is held to it."""
    r, ref = testbed.bandit_r, testbed.bandit_ref
    found = ref
    for _ in range(3):
        found = climb(found, rewarded(r, KLInReward(coef=3.0), found))
    assert (found - (ref.log() + 3 * r / 3.0).softmax(0)).abs().max() <= 1e-12
    once = (ref.log() + r / 3.0).softmax(0)  # where a reference that stays leads, in however many rounds
    assert (found - once).abs().max() > 0.04


@pytest.mark.parametrize("kl", [KLInReward(coef=3.0), KLInLoss(coef=3.0)])
def test_dividing_by_the_standard_deviation_moves_the_fixed_point_as_predicted(testbed, kl) -> None:
    """The score is standardised by the policy's own mean and deviation, the KL is not (GRPO at G → ∞)."""
    r, ref = testbed.bandit_r, testbed.bandit_ref

    def loss(logprobs: Tensor) -> Tensor:
        p = logprobs.detach()[:, 0].exp()
        return rewarded((r - p @ r) / (p @ (r - p @ r).square()).sqrt(), kl, ref)(logprobs)

    found = climb(ref, loss)
    sigma = (found @ (r - found @ r).square()).sqrt()
    if isinstance(kl, KLInReward):
        predicted = (ref.log() + r / (3.0 * sigma)).softmax(0)
    else:
        predicted = ref / (1 - (r - found @ r) / sigma / 3.0)
    assert (found - predicted).abs().max() <= 1e-12


def test_k1_as_a_loss_holds_nothing_and_leads_to_the_best_arm(testbed) -> None:
    r, ref = testbed.bandit_r, testbed.bandit_ref
    score = rewarded(r, KLInReward(coef=0.0), ref)
    found = climb(ref, lambda logprobs: score(logprobs) + k1(logprobs, ref.log()[:, None]))
    assert found.argmax() == r.argmax()
    assert found.max() > 0.99


def test_k2_in_the_reward_climbs_its_own_expectation_less_the_kl(testbed) -> None:
    """∇[k2 charged as a reward] = ∇[E k2 − KL(π‖ref)], which has no fixed point of its own."""
    ref = testbed.bandit_ref
    theta = (ref.log() + 0.5 * testbed.bandit_r).requires_grad_()
    p = theta.log_softmax(0)
    charged = (p.exp().detach() * k2(p, ref.log()).detach() * p).sum()
    difference = (p.exp() * k2(p, ref.log())).sum() - (p.exp() * k1(p, ref.log())).sum()
    first, second = (torch.autograd.grad(x, theta, retain_graph=True)[0] for x in (charged, difference))
    assert (first - second).abs().max() <= 1e-14


def test_k3_in_the_reward_climbs_the_difference_of_two_divergences(testbed) -> None:
    """∇[k3 charged as a reward] = ∇[KL(π‖ref) − KL(ref‖π)], which is why no component offers it."""
    ref = testbed.bandit_ref
    theta = (ref.log() + 0.5 * testbed.bandit_r).requires_grad_()
    p = theta.log_softmax(0)
    charged = (p.exp().detach() * k3(p, ref.log()).detach() * p).sum()
    difference = (p.exp() * k1(p, ref.log())).sum() - (ref * k1(ref.log(), p)).sum()
    first, second = (torch.autograd.grad(x, theta, retain_graph=True)[0] for x in (charged, difference))
    assert (first - second).abs().max() <= 1e-14


def bundled(r: Tensor, kl: KL, ref: Tensor, **around: float) -> Callable[[Tensor], Tensor]:
    """The loss of the whole bundle, with what a trainer hands it."""
    chosen = PolicyGradient(
        advantage=NoBaseline(),
        policy_loss=Reinforce(),
        kl=kl,
        aggregation=ConstantLength(length=1),
        missing_eos_score=None,
        **around,
    )
    log_ref, ended, coef = ref.log()[:, None], torch.ones(8).bool(), kl.initial_coef

    def loss(logprobs: Tensor) -> Tensor:
        old = logprobs.detach()
        rewards = chosen.shape(r, ended, old, log_ref, MASK, coef)
        experience = SimpleNamespace(
            rollout=SimpleNamespace(mask=MASK),
            old_logprobs=old,
            ref_logprobs=log_ref,
            advantages=rewards - (old.exp() * rewards).sum(),
        )
        p = logprobs.exp()
        entropy, exact = -(p * logprobs).sum(), (p * (logprobs - log_ref)).sum()
        return chosen.token_loss(
            logprobs, experience, coef, entropies=entropy.expand(8, 1), exact_kl=exact.expand(8, 1)
        )

    return loss


@pytest.mark.parametrize("kl", [K2InLoss(coef=1.0), ExactKLInLoss(coef=1.0)])
def test_k2_and_the_exact_kl_in_the_loss_of_one_step_lead_to_the_tilted_reference(testbed, kl: KL) -> None:
    r, ref = testbed.bandit_r, testbed.bandit_ref
    found = climb(ref, bundled(r, kl, ref))
    assert (found - (ref.log() + r).softmax(0)).abs().max() <= 1e-8


@pytest.mark.parametrize("kl", [KLInReward(coef=1.0), ExactKLInLoss(coef=1.0)])
def test_an_entropy_bonus_flattens_the_tilted_reference(testbed, kl: KL) -> None:
    """argmax E r − β·KL + c·H is (π_ref^β·e^r)^(1/(β+c)), normalised."""
    r, ref = testbed.bandit_r, testbed.bandit_ref
    found = climb(ref, bundled(r, kl, ref, entropy_coef=0.5))
    assert (found - ((ref.log() + r) / 1.5).softmax(0)).abs().max() <= 1e-8


def test_clipping_the_score_leads_to_the_tilt_by_the_clipped_score(testbed) -> None:
    r, ref = testbed.bandit_r, testbed.bandit_ref
    assert (r.abs() > 0.5).any()
    found = climb(ref, bundled(r, KLInReward(coef=1.0), ref, score_clip=0.5))
    assert (found - (ref.log() + r.clamp(-0.5, 0.5)).softmax(0)).abs().max() <= 1e-8


def test_clipping_the_score_at_one_costs_what_the_specification_says(testbed) -> None:
    """KL(clipped optimum‖π*) = 0.1733742 on the testbed (numerics 3.2)."""
    clipped = testbed.log_ref + testbed.r.clamp(-1.0, 1.0) / testbed.BETA
    clipped = clipped - clipped.logsumexp(0)
    assert (clipped.exp() @ (clipped - testbed.log_star)).item() == pytest.approx(0.1733742, abs=5e-8)


def test_without_a_kl_only_the_best_arm_remains(testbed) -> None:
    r, ref = testbed.bandit_r, testbed.bandit_ref
    found = climb(ref, bundled(4 * r, NoKL(), ref))
    assert found.argmax() == r.argmax()
    assert found.max() > 0.99


def test_updates_of_the_penalised_surrogate_end_at_its_own_optimum(testbed) -> None:
    """argmax Σ π·A − β·KL(π_old‖π) is β·π_old/(c − A): the penalty is a forward KL, whatever the samples."""
    r, old = testbed.bandit_r, testbed.bandit_ref
    loss, theta = KLPenalised(coef=2.0), testbed.bandit_ref.log().clone().requires_grad_()
    before = old.log()[:, None]
    for _ in range(2000):
        logprobs = theta.log_softmax(0)[:, None]
        token = loss(logprobs, before, r[:, None], MASK) + loss.penalty(logprobs, before, MASK, 2.0)
        (gradient,) = torch.autograd.grad(old @ token[:, 0], theta)  # samples stay the old policy's
        with torch.no_grad():
            theta -= 0.5 * gradient
    assert (theta.detach().softmax(0) - forward_kl_point(r, old, 2.0)).abs().max() <= 1e-8
