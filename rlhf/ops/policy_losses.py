"""Policy-gradient losses, one number per token; they reduce nothing (numerics D38, D40).

Advantages are constants of a loss: they carry no gradient. A loss does not read padding and is 0 there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.ops.kl import k3


def reinforce(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Score-function loss −Aₜ·log π(yₜ) (Williams 1992).

    Args:
        logprobs: (B, T) log π of each token.
        advantages: (B, T).
        mask: (B, T) bool.

    Returns:
        (B, T) loss, 0 on padding.
    """
    return -torch.where(mask, advantages, 0.0) * torch.where(mask, logprobs, 0.0)


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    """Clipped surrogate of PPO (Schulman et al. 2017, eq. 7; unequal clips: DAPO, Yu et al. 2025).

        ρₜ = π(yₜ)/π_old(yₜ)
        lossₜ = −min(ρₜ·Aₜ, clip(ρₜ, 1 − clip_low, 1 + clip_high)·Aₜ)

    The log-ratio is not clamped.

    Args:
        logprobs: (B, T) log π of each token.
        old_logprobs: (B, T) log π_old of each token.
        advantages: (B, T).
        mask: (B, T) bool.
        clip_low: how far the ratio may fall below 1.
        clip_high: how far it may rise above 1.

    Returns:
        (B, T) loss, 0 on padding.
    """
    ratio = (torch.where(mask, logprobs, 0.0) - torch.where(mask, old_logprobs, 0.0)).exp()
    advantages = torch.where(mask, advantages, 0.0)
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def clipped(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    """Where `clipped_surrogate` has no gradient although the advantage is not 0.

        (A > 0 and ρ > 1 + clip_high)   or   (A < 0 and ρ < 1 − clip_low)

    Args:
        logprobs: (B, T) log π of each token.
        old_logprobs: (B, T) log π_old of each token.
        advantages: (B, T).
        clip_low: how far the ratio may fall below 1.
        clip_high: how far it may rise above 1.

    Returns:
        (B, T) bool; what padding holds is for the caller's mask to leave out.
    """
    ratio = (logprobs - old_logprobs).exp()
    above = (advantages > 0) & (ratio > 1 + clip_high)
    below = (advantages < 0) & (ratio < 1 - clip_low)
    return above | below


def approx_kl(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """Sampled KL(π_old‖π) of each token, (ρ − 1) − log ρ with ρ = π/π_old (numerics D44).

    Args:
        logprobs: (B, T) log π of each token.
        old_logprobs: (B, T) log π_old of each token.

    Returns:
        (B, T) nats per token, never negative; what padding holds is for the caller's mask to leave out.
    """
    return k3(old_logprobs, logprobs)
