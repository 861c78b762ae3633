"""What a rollout and its updates are measured by; names and units are in ``docs/metrics.md``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.algorithms.policy_losses import PolicyLoss
from rlhf.batch import Experience, Rollout
from rlhf.distributed.collectives import all_sum
from rlhf.metrics import Metrics
from rlhf.ops.kl import k1, k3
from rlhf.ops.policy_losses import approx_kl
from rlhf.ops.variance import explained_variance


@dataclass(kw_only=True, slots=True)
class Measured:
    """What is known of a rollout before advantages are estimated."""

    rollout: Rollout
    scores: Tensor  # (B,) as the reward gave them
    rewards: Tensor  # (B, T)
    old_logprobs: Tensor  # (B, T)
    ref_logprobs: Tensor  # (B, T)
    entropies: Tensor  # (B, T)
    exact_kl: Tensor | None  # (B, T); None where it is not wanted


def rollout(measured: Measured, metrics: Metrics) -> float:
    """Scores, KL to the reference, lengths and the log-prob ledger.

    Returns:
        Mean over all ranks of the sequence KL Σₜ k1, nats per response (numerics D18).
    """
    mask, old, ref = measured.rollout.mask, measured.old_logprobs, measured.ref_logprobs
    kl = sequence_kl(measured)
    metrics.mean("reward/score", measured.scores)
    metrics.value("reward/score_std", _std(measured.scores))
    metrics.mean("reward/total", torch.where(mask, measured.rewards, 0.0).sum(1))
    metrics.mean("actor/kl_reference", kl)
    metrics.mean("actor/kl_reference_per_token", k1(old, ref), mask)
    metrics.mean("actor/kl_reference_k3", torch.where(mask, k3(old, ref), 0.0).sum(1))
    if measured.exact_kl is not None:
        metrics.mean("actor/kl_reference_exact", torch.where(mask, measured.exact_kl, 0.0).sum(1))
    metrics.mean("actor/entropy", measured.entropies, mask)
    metrics.mean("rollout/length", measured.rollout.lengths)
    metrics.mean("rollout/ended_fraction", measured.rollout.ended.double())
    metrics.mean("rollout/truncated_fraction", (~measured.rollout.ended).double())
    gap = (measured.rollout.sampler_logprobs - old).abs()
    metrics.mean("ledger/logprob_gap_mean", gap, mask)
    metrics.maximum("ledger/logprob_gap_max", torch.where(mask, gap, 0.0).max())
    total, count = all_sum(torch.tensor([kl.double().sum(), len(kl)], dtype=torch.float64)).tolist()
    return total / count


def parts(scores: Mapping[str, Tensor], metrics: Metrics) -> None:
    """Each part of a mixture by its name, without its weight."""
    for name, part in scores.items():
        metrics.mean(f"reward/{name}", part)


def sequence_kl(measured: Measured) -> Tensor:
    """(B,) Σₜ k1 of each response, nats (numerics D18)."""
    per_token = k1(measured.old_logprobs, measured.ref_logprobs)
    return torch.where(measured.rollout.mask, per_token, 0.0).sum(1)


def _std(scores: Tensor) -> float:
    """Population standard deviation over all ranks."""
    wide = scores.double()
    total, squares, count = all_sum(
        torch.stack([wide.sum(), (wide**2).sum(), torch.ones_like(wide).sum()])
    ).tolist()
    return math.sqrt(max(squares / count - (total / count) ** 2, 0.0))


def policy_moves(loss: PolicyLoss, logprobs: Tensor, part: Experience, metrics: Metrics) -> None:
    """How far the policy has moved from the one that sampled, per token."""
    mask, old = part.rollout.mask, part.old_logprobs
    metrics.mean("actor/kl_old", approx_kl(logprobs, old), mask)
    clipped = loss.clipped(logprobs, old, part.advantages)
    metrics.mean("actor/clip_fraction", clipped.double(), mask)


def critic(experience: Experience, metrics: Metrics) -> None:
    """How much of the returns' variance the values explain (numerics D36)."""
    if experience.old_values is None or experience.returns is None:
        return
    values, returns, mask = experience.old_values, experience.returns, experience.rollout.mask
    explained = explained_variance(values, returns, mask, all_sum)
    metrics.value("critic/explained_variance", float(explained))
