"""Losses instead of rewards (numerics 3.2): a KL in the loss leads elsewhere, to where it is predicted to."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.advantages import LeaveOneOut
from rlhf.algorithms.kl import KL, KLInLoss
from rlhf.ops.kl import k1, k2, k3
from tests.testbed import table
from tests.testbed.tree import Testbed


@dataclass(kw_only=True, slots=True)
class InLoss(KL):
    """What the product does not offer, at β = 0.5."""

    @property
    def initial_coef(self) -> float:
        return 0.5


@dataclass(kw_only=True, slots=True)
class TokenK2(InLoss):
    def loss(self, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, coef: float) -> Tensor:
        return coef * torch.where(mask, k2(logprobs, ref_logprobs), 0.0)


@dataclass(kw_only=True, slots=True)
class KLToGo(InLoss):
    """The score-function loss of the KL that is still to come: the right gradient."""

    def loss(self, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, coef: float) -> Tensor:
        cost = torch.where(mask, k1(logprobs, ref_logprobs), 0.0).detach()
        return coef * cost.flip(1).cumsum(1).flip(1) * torch.where(mask, logprobs, 0.0)


@dataclass(kw_only=True, slots=True)
class SequenceK2(InLoss):
    def loss(self, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, coef: float) -> Tensor:
        return on_first(coef * k2(summed(logprobs, mask), summed(ref_logprobs, mask)), mask)


@dataclass(kw_only=True, slots=True)
class SequenceK3(InLoss):
    def loss(self, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, coef: float) -> Tensor:
        return on_first(coef * k3(summed(logprobs, mask), summed(ref_logprobs, mask)), mask)


def summed(logprobs: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, logprobs, 0.0).sum(1)


def on_first(loss: Tensor, mask: Tensor) -> Tensor:
    """(B,) on the first token of each response: constant_length 1 adds up a row."""
    return torch.cat([loss[:, None], torch.zeros_like(mask[:, 1:]).float()], 1)


def stationary(bed: Testbed, kl: KL) -> Tensor:
    """(85, 5) where exact gradients of the production loss lead, every response enumerated in float64."""
    algorithm = table.grouped(LeaveOneOut(), kl=kl)
    logits = bed.ref_logits.clone().requires_grad_()
    ref = bed.logprobs(bed.ref_logits)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for step in range(1500):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 1500)
        logprobs = bed.logprobs(logits)
        weights = bed.log_joint(logits.detach()).exp()[:, None]
        centred = bed.r - (weights[:, 0] @ bed.r)
        loss = algorithm.policy_loss(
            logprobs, logprobs.detach(), centred[:, None].expand(-1, bed.T), bed.mask
        )
        loss = loss + algorithm.kl.loss(logprobs, ref, bed.mask, kl.initial_coef)
        optimizer.zero_grad()
        (weights * torch.where(bed.mask, loss, 0.0)).sum().backward()
        optimizer.step()
    return logits.detach()


def between(bed: Testbed, logits: Tensor, other: Tensor) -> float:
    """KL of the one policy to the other, nats."""
    joint = bed.log_joint(logits)
    return (joint.exp() @ (joint - bed.log_joint(other))).item()


def test_kl_in_loss_ends_at_its_own_fixed_point_half_a_nat_away(testbed: Testbed) -> None:
    predicted = stationary(testbed, KLInLoss(coef=0.5))
    assert testbed.distance(predicted) == pytest.approx(0.499, abs=2e-3)
    trained = table.trainer(testbed, table.grouped(LeaveOneOut(), kl=KLInLoss(coef=0.5)), updates=300)
    distance = table.distance_after(testbed, trained)
    assert 0.42 <= distance <= 0.55
    assert between(testbed, table.logits(trained), predicted) <= 0.02


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kl", "low", "high"),
    [
        (SequenceK2(), 0.003, 0.01),
        (KLToGo(), 0.003, 0.01),
        (TokenK2(), 1.15, 1.35),
        (SequenceK3(), 1.0, 3.0),
    ],
    ids=lambda part: type(part).__name__ if isinstance(part, KL) else str(part),
)
def test_other_losses_end_where_the_specification_found_them(
    testbed: Testbed, kl: KL, low: float, high: float
) -> None:
    trained = table.trainer(testbed, table.grouped(LeaveOneOut(), kl=kl), updates=600)
    distance = table.distance_after(testbed, trained)
    assert low <= distance <= high
