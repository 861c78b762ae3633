"""E14: group baselines on all 64 triples of four responses, by enumeration."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.advantages import AdvantageEstimator, GroupRelative, LeaveOneOut
from rlhf.algorithms.aggregation import ConstantLength
from rlhf.algorithms.policy_losses import Reinforce

G = 3
PROBABILITIES = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
SCORES = torch.tensor([0.0, 1.0, 0.3, -1.0], dtype=torch.float64)
TRIPLES = torch.tensor(list(itertools.product(range(4), repeat=G)))  # (64, 3)
EXACT = PROBABILITIES * (SCORES - PROBABILITIES @ SCORES)  # ∇ E r of a softmax


def gradients(advantages: Tensor) -> Tensor:
    """(64, 4) estimate of ∇ E r by each triple from (64, 3) advantages, through the production loss."""
    theta = PROBABILITIES.log().requires_grad_()
    logprobs = theta.log_softmax(0)[TRIPLES].reshape(-1, 1)
    loss = -Reinforce()(logprobs, logprobs.detach(), advantages.reshape(-1, 1), torch.ones(192, 1).bool())
    means = loss.reshape(64, G).mean(1)
    return torch.stack([torch.autograd.grad(mean, theta, retain_graph=True)[0] for mean in means])


def estimate(estimator: AdvantageEstimator, offset: float = 0.0) -> Tensor:
    """(64, 3) advantages when all triples are one shuffled batch."""
    group = torch.arange(64).repeat_interleave(G)
    order = torch.randperm(192, generator=torch.Generator().manual_seed(0))
    rewards = (SCORES + offset)[TRIPLES].reshape(-1, 1)
    found = estimator(rewards[order], None, torch.ones(192, 1).bool(), group[order], lambda part: part)
    advantages = torch.empty(192, 1, dtype=torch.float64)
    advantages[order] = found.advantages
    assert found.returns is None
    return advantages.reshape(64, G)


def mean_and_variance(estimates: Tensor) -> tuple[Tensor, float]:
    weight = PROBABILITIES[TRIPLES].prod(1)
    mean = weight @ estimates
    return mean, (weight @ (estimates - mean).square().sum(1)).item()


def test_leave_one_out_is_unbiased() -> None:
    mean, _ = mean_and_variance(gradients(estimate(LeaveOneOut())))
    assert (mean - EXACT).abs().max() <= 1e-14


def test_centring_by_the_group_mean_shrinks_the_gradient_by_two_thirds() -> None:
    mean, _ = mean_and_variance(gradients(estimate(GroupRelative(divide_by_std=False))))
    torch.testing.assert_close(mean, EXACT * 2 / 3, rtol=0, atol=1e-14)


def test_dividing_by_the_standard_deviation_turns_the_gradient() -> None:
    mean, _ = mean_and_variance(gradients(estimate(GroupRelative())))
    assert (mean / EXACT).tolist() == pytest.approx([1.58, 1.05, 3.76, 0.78], abs=6e-3)
    assert torch.cosine_similarity(mean, EXACT, dim=0).item() == pytest.approx(0.975, abs=6e-4)


@pytest.mark.parametrize("offset", [0.0, 1.0, -1.0, 2.0])
def test_variance_of_leave_one_out_ignores_an_offset(offset: float) -> None:
    _, variance = mean_and_variance(gradients(estimate(LeaveOneOut(), offset)))
    assert variance == pytest.approx(0.129353, abs=1e-6)


@pytest.mark.parametrize(
    ("offset", "expected"), [(0.0, 0.086720), (1.0, 0.422720), (-1.0, 0.217387), (2.0, 1.225387)]
)
def test_variance_of_plain_reinforce_depends_on_the_offset(offset: float, expected: float) -> None:
    _, variance = mean_and_variance(gradients((SCORES + offset)[TRIPLES]))
    assert variance == pytest.approx(expected, abs=1e-6)


def test_dr_grpo_is_leave_one_out_scaled() -> None:
    """(G−1)/G, up to the constant length (numerics D49)."""
    mask = torch.ones(192, 7).bool()
    scale = ConstantLength(length=7)(mask, lambda part: part) / ConstantLength(length=1)(
        mask, lambda part: part
    )
    torch.testing.assert_close(scale, torch.full((192, 7), 1 / 7))
    torch.testing.assert_close(
        estimate(GroupRelative(divide_by_std=False)), estimate(LeaveOneOut()) * (G - 1) / G
    )
