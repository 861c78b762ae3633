"""Losses on pairs of scores, one number per pair; they reduce nothing."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor, label: float | Tensor = 1.0) -> Tensor:
    """Negative log-likelihood of a comparison (Bradley and Terry 1952; margin: Llama 2; numerics D22, D24).

        Δ = s_chosen − s_rejected − margin
        loss = −μ·log σ(Δ) − (1 − μ)·log σ(−Δ)

    Args:
        chosen: (B,) scores of the responses named first.
        rejected: (B,) scores of the others.
        margin: (B,) by how much the first score should exceed the other.
        label: μ, a number or (B,): 1 when the first is better, ½ for a tie, 0 when it is worse.

    Returns:
        (B,) nats per pair.
    """
    gap = chosen - rejected - margin
    return -(label * F.logsigmoid(gap) + (1 - label) * F.logsigmoid(-gap))


def centring(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(s_chosen + s_rejected)², which pins the mean score that comparisons leave free (numerics D22).

    Args:
        chosen: (B,) scores of the better responses.
        rejected: (B,) scores of the others.

    Returns:
        (B,) squared units of the score.
    """
    return (chosen + rejected).square()
