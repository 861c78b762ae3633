"""What a rollout and its updates are measured by; names and units are in ``docs/metrics.md``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf.algorithms.policy_gradient import PolicyGradient
from rlhf.batch import Experience, Rollout
from rlhf.distributed.collectives import all_sum
from rlhf.metrics import Metrics
from rlhf.ops.kl import k1, k3
from rlhf.ops.logprobs import TokenLogprobs
from rlhf.ops.policy_losses import approx_kl
from rlhf.ops.variance import explained_variance


@dataclass(kw_only=True, slots=True)
class Measured:
    """What is known of a rollout before advantages are estimated."""

    rollout: Rollout
    scores: Tensor  # (B,) as the reward gave them
    parts: dict[str, Tensor]  # (B,) each: the parts of a mixture, by name, without their weights
    rewards: Tensor  # (B, T)
    old_logprobs: Tensor  # (B, T)
    ref_logprobs: Tensor | None  # (B, T); None without a reference
    entropies: Tensor  # (B, T)
    exact_kl: Tensor | None  # (B, T); None where it is not wanted
    live: TokenLogprobs | None = None  # see `rlhf.trainers.scoring.Logprobs.live`


class Means(NamedTuple):
    """Over all responses of all ranks."""

    kl: float
    """Sequence KL to the reference, Σₜ k1, nats (numerics D18); 0 without a reference."""
    total: float
    """Return, Σₜ rewards."""


def rollout(measured: Measured, metrics: Metrics) -> Means:
    """Scores, KL to the reference, lengths and the log-prob ledger."""
    mask, old = measured.rollout.mask, measured.old_logprobs
    totals = torch.where(mask, measured.rewards, 0.0).sum(1)
    metrics.mean("reward/score", measured.scores)
    metrics.value("reward/score_std", _std(measured.scores))
    for name, part in measured.parts.items():
        metrics.mean(f"reward/{name}", part)
    metrics.mean("reward/total", totals)
    _distance(measured, metrics)
    metrics.mean("actor/entropy", measured.entropies, mask)
    lengths(measured.rollout, metrics)
    gap = (measured.rollout.sampler_logprobs - old).abs()
    metrics.mean("ledger/logprob_gap_mean", gap, mask)
    metrics.maximum("ledger/logprob_gap_max", torch.where(mask, gap, 0.0).max())
    kl = sequence_kl(measured)
    sums = [part.double().sum() for part in (torch.zeros_like(totals) if kl is None else kl, totals)]
    divergence, total, rows = all_sum(torch.stack([*sums, sums[0].new_tensor(len(totals))])).tolist()
    return Means(kl=divergence / rows, total=total / rows)


def lengths(rollout: Rollout, metrics: Metrics) -> None:
    """Of responses, and how they end."""
    metrics.mean("rollout/length", rollout.lengths)
    metrics.mean("rollout/ended_fraction", rollout.ended.double())
    metrics.mean("rollout/truncated_fraction", (~rollout.ended).double())


def _distance(measured: Measured, metrics: Metrics) -> None:
    """KL to the reference, where there is one."""
    kl, mask, ref = sequence_kl(measured), measured.rollout.mask, measured.ref_logprobs
    if kl is None or ref is None:
        return
    metrics.mean("actor/kl_reference", kl)
    metrics.mean("actor/kl_reference_per_token", k1(measured.old_logprobs, ref), mask)
    metrics.mean("actor/kl_reference_k3", torch.where(mask, k3(measured.old_logprobs, ref), 0.0).sum(1))
    if measured.exact_kl is not None:
        metrics.mean("actor/kl_reference_exact", torch.where(mask, measured.exact_kl, 0.0).sum(1))


def sequence_kl(measured: Measured) -> Tensor | None:
    """(B,) Σₜ k1 of each response, nats (numerics D18); None without a reference."""
    if measured.ref_logprobs is None:
        return None
    per_token = k1(measured.old_logprobs, measured.ref_logprobs)
    return torch.where(measured.rollout.mask, per_token, 0.0).sum(1)


def shown(measured: Measured) -> dict[str, Tensor]:
    """(B,) each: the numbers that stand beside a response in ``samples.jsonl``."""
    kl = sequence_kl(measured)
    return {"score": measured.scores, **({} if kl is None else {"kl": kl})}


def _std(scores: Tensor) -> float:
    """Population standard deviation over all ranks."""
    wide = scores.double()
    total, squares, count = all_sum(
        torch.stack([wide.sum(), (wide**2).sum(), torch.ones_like(wide).sum()])
    ).tolist()
    return math.sqrt(max(squares / count - (total / count) ** 2, 0.0))


def policy_moves(algorithm: PolicyGradient, logprobs: Tensor, part: Experience, metrics: Metrics) -> None:
    """How far the policy has moved from the one that sampled, per token."""
    mask, old = part.rollout.mask, part.old_logprobs
    metrics.mean("actor/kl_old", approx_kl(logprobs, old), mask)
    clipped = algorithm.policy_loss.clipped(logprobs, old, part.advantages, mask)
    metrics.mean("actor/clip_fraction", clipped.double(), mask)
    if algorithm.correction is not None:
        weights = algorithm.correction(old, part.rollout.sampler_logprobs, mask)
        metrics.mean("actor/correction_weight", weights, mask)


def critic(experience: Experience, metrics: Metrics) -> None:
    """How much of the returns' variance the values explain (numerics D36)."""
    if experience.old_values is None or experience.returns is None:
        return
    values, returns, mask = experience.old_values, experience.returns, experience.rollout.mask
    explained = explained_variance(values, returns, mask, all_sum)
    metrics.value("critic/explained_variance", float(explained))
