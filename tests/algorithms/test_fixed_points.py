"""E7: where each placement of the KL leads, by exact gradient ascent on an eight-armed bandit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.kl import KLInLoss, KLInReward
from rlhf.algorithms.policy_losses import Reinforce
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


def test_k3_in_the_reward_climbs_the_difference_of_two_divergences(testbed) -> None:
    """∇[k3 charged as a reward] = ∇[KL(π‖ref) − KL(ref‖π)], which is why no component offers it."""
    ref = testbed.bandit_ref
    theta = (ref.log() + 0.5 * testbed.bandit_r).requires_grad_()
    p = theta.log_softmax(0)
    charged = (p.exp().detach() * k3(p, ref.log()).detach() * p).sum()
    difference = (p.exp() * k1(p, ref.log())).sum() - (ref * k1(ref.log(), p)).sum()
    first, second = (torch.autograd.grad(x, theta, retain_graph=True)[0] for x in (charged, difference))
    assert (first - second).abs().max() <= 1e-14
