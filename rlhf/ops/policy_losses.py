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
    dual_clip: float | None = None,
) -> Tensor:
    """Clipped surrogate of PPO (Schulman et al. 2017, eq. 7; unequal clips: DAPO, Yu et al. 2025).

        ρₜ = π(yₜ)/π_old(yₜ)
        lossₜ = −min(ρₜ·Aₜ, clip(ρₜ, 1 − clip_low, 1 + clip_high)·Aₜ)

    With a dual clip c (Ye et al. 2020) the loss of a token with A < 0 is at most −c·A: one token that has
    become much more likely cannot own the update. The log-ratio is not clamped.

    Args:
        logprobs: (B, T) log π of each token.
        old_logprobs: (B, T) log π_old of each token.
        advantages: (B, T).
        mask: (B, T) bool.
        clip_low: how far the ratio may fall below 1.
        clip_high: how far it may rise above 1.
        dual_clip: c, above 1 + clip_high; None for no bound.

    Returns:
        (B, T) loss, 0 on padding.
    """
    ratio, advantages = token_ratio(logprobs, old_logprobs, mask), torch.where(mask, advantages, 0.0)
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    if dual_clip is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)


def clipped(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Tensor:
    """Where `clipped_surrogate` has no gradient although the advantage is not 0.

        (A > 0 and ρ > 1 + clip_high)   or   (A < 0 and (ρ < 1 − clip_low or ρ > c))

    Args:
        logprobs: (B, T) log π of each token.
        old_logprobs: (B, T) log π_old of each token.
        advantages: (B, T).
        clip_low: how far the ratio may fall below 1.
        clip_high: how far it may rise above 1.
        dual_clip: c, above 1 + clip_high; None for no bound.

    Returns:
        (B, T) bool; what padding holds is for the caller's mask to leave out.
    """
    ratio = (logprobs - old_logprobs).exp()
    above = (advantages > 0) & (ratio > 1 + clip_high)
    below = (advantages < 0) & (ratio < 1 - clip_low)
    far = (advantages < 0) & (ratio > (torch.inf if dual_clip is None else dual_clip))
    return above | below | far


def unclipped_surrogate(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Surrogate without bounds, −ρₜ·Aₜ; something else must hold the policy (Schulman et al. 2017, eq. 8).

    Args:
        logprobs: (B, T) log π of each token.
        old_logprobs: (B, T) log π_old of each token.
        advantages: (B, T).
        mask: (B, T) bool.

    Returns:
        (B, T) loss, 0 on padding.
    """
    return -token_ratio(logprobs, old_logprobs, mask) * torch.where(mask, advantages, 0.0)


def clipped_weight(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, low: float, high: float
) -> Tensor:
    """CISPO: REINFORCE with a bounded, detached importance weight (MiniMax-M1, 2025, eq. 4–5).

        lossₜ = −sg(clip(ρₜ, low, high))·Aₜ·log π(yₜ)

    The weight is bounded, not the update: every token keeps a gradient, whatever its ratio.

    Args:
        logprobs: (B, T) log π of each token.
        old_logprobs: (B, T) log π_old of each token.
        advantages: (B, T).
        mask: (B, T) bool.
        low: smallest weight.
        high: largest weight.

    Returns:
        (B, T) loss, 0 on padding.
    """
    weight = token_ratio(logprobs, old_logprobs, mask).detach().clamp(low, high)
    return weight * reinforce(logprobs, advantages, mask)


def token_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Importance ratio of each token, ρₜ = π(yₜ)/π_old(yₜ).

    Args:
        logprobs: (B, T) log π of each token.
        old_logprobs: (B, T) log π_old of each token.
        mask: (B, T) bool.

    Returns:
        (B, T), 1 on padding.
    """
    return (torch.where(mask, logprobs, 0.0) - torch.where(mask, old_logprobs, 0.0)).exp()


def sequence_log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Length-normalised log-ratio of the response, on each of its tokens (GSPO, Zheng et al. 2025, eq. 7).

        sᵢ = (π(yᵢ)/π_old(yᵢ))^(1/lenᵢ) = exp(1/lenᵢ·Σₜ log ρₜ)

    The value is log sᵢ, the gradient that of log π(yₜ): sg(log sᵢ) + log π(yₜ) − sg(log π(yₜ)). A loss of a
    ratio that reads this in place of log ρₜ sees sᵢ on every token, and averaged over the response its
    gradient is that of the loss of sᵢ (eq. 14; numerics D51). sᵢ is a geometric mean, not the importance
    ratio of the response.

    Args:
        logprobs: (B, T) log π of each token; whole responses.
        old_logprobs: (B, T) log π_old of each token.
        mask: (B, T) bool.

    Returns:
        (B, T), 0 on padding.
    """
    logprobs, old_logprobs = torch.where(mask, logprobs, 0.0), torch.where(mask, old_logprobs, 0.0)
    lengths = mask.sum(1, keepdim=True).clamp(min=1)  # (B, 1)
    whole = (logprobs - old_logprobs).detach().sum(1, keepdim=True) / lengths
    return torch.where(mask, whole + (logprobs - logprobs.detach()), 0.0)


def approx_kl(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """Sampled KL(π_old‖π) of each token, (ρ − 1) − log ρ with ρ = π/π_old (numerics D44).

    Args:
        logprobs: (B, T) log π of each token.
        old_logprobs: (B, T) log π_old of each token.

    Returns:
        (B, T) nats per token, never negative; what padding holds is for the caller's mask to leave out.
    """
    return k3(old_logprobs, logprobs)
