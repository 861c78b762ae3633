"""Whether two scorers say the same of the same pairs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rlhf.evaluation.pairs import wilson_interval


@dataclass(kw_only=True, slots=True)
class JudgeAgreement:
    """A reward beside a second judge, pair by pair."""

    judge: str
    agreed: float
    """Share of pairs of which both say the same: the same favourite, or both a tie."""
    low: float
    high: float
    """95 % interval (Wilson)."""
    kappa: float | None
    """Cohen's kappa, were every pair shown in either order; None where both always tie."""
    both_right: float
    """Share of pairs where both prefer the chosen response, …"""
    reward_alone: float
    """… the reward alone, …"""
    judge_alone: float
    """… the judge alone, …"""
    neither: float
    """… neither."""


def judge_agreement(judge: str, rewards: Tensor, verdicts: Tensor) -> JudgeAgreement:
    """Compare two scorers of the same pairs.

        κ = (p_o − p_e) / (1 − p_e)        p_e = (1 − t₁)(1 − t₂)/2 + t₁·t₂

    with t the share of ties of each: in which order a pair is written says nothing, so each order is
    half of the table that chance agreement p_e is taken from (Cohen 1960).

    Args:
        judge: its name.
        rewards: (N,) r_chosen − r_rejected.
        verdicts: (N,) the judge's.
    """
    reward, verdict = rewards.sign(), verdicts.sign()
    same = int((reward == verdict).sum())
    low, high = wilson_interval(same, len(reward))
    ties = [float((signs == 0).double().mean()) for signs in (reward, verdict)]
    observed, chance = same / len(reward), (1 - ties[0]) * (1 - ties[1]) / 2 + ties[0] * ties[1]
    right, also = reward > 0, verdict > 0
    return JudgeAgreement(
        judge=judge,
        agreed=observed,
        low=low,
        high=high,
        kappa=(observed - chance) / (1 - chance) if chance < 1 else None,
        both_right=_share(right & also),
        reward_alone=_share(right & ~also),
        judge_alone=_share(~right & also),
        neither=_share(~right & ~also),
    )


def _share(marked: Tensor) -> float:
    return float(marked.double().mean())
