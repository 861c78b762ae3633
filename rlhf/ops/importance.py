"""Importance weights for tokens that another distribution drew than the one that scores them.

A sampler of its own (other kernels, another precision, older weights) draws from π_s, while the log-probs
of the update start from π_old. The weight w = π_old/π_s makes an expectation under π_s one under π_old.
Unbounded, a single token can own the update; every function here bounds its weights. They are constants of
the loss: detached, 0 on padding.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_log_weights(old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Log-weight of each token by itself, log π_old(yₜ) − log π_s(yₜ).

    Args:
        old_logprobs: (B, T) log π_old of each token, as the scorer sees it.
        sampler_logprobs: (B, T) log π_s of each token, as the sampler drew it.
        mask: (B, T) bool.

    Returns:
        (B, T) detached, 0 on padding.
    """
    return (torch.where(mask, old_logprobs, 0.0) - torch.where(mask, sampler_logprobs, 0.0)).detach()


def sequence_log_weights(old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Log-weight of the whole response on each of its tokens, Σₜ log π_old(yₜ) − log π_s(yₜ).

    Args:
        old_logprobs: (B, T) log π_old of each token, as the scorer sees it.
        sampler_logprobs: (B, T) log π_s of each token, as the sampler drew it.
        mask: (B, T) bool.

    Returns:
        (B, T) detached, 0 on padding.
    """
    whole = token_log_weights(old_logprobs, sampler_logprobs, mask).sum(1, keepdim=True)
    return torch.where(mask, whole, 0.0)


def truncated_weights(log_weights: Tensor, mask: Tensor, *, cap: float) -> Tensor:
    """Truncated importance sampling, min(w, cap) (Ionides 2008; Yao et al. 2025).

    Args:
        log_weights: (B, T) log w.
        mask: (B, T) bool.
        cap: largest weight, positive.

    Returns:
        (B, T) from 0 to ``cap``, 0 on padding.
    """
    weights = torch.where(mask, log_weights, 0.0).exp().clamp(max=cap)  # exp may be inf, its clamp is not
    return torch.where(mask, weights, 0.0)


def masked_weights(log_weights: Tensor, mask: Tensor, *, low: float, high: float) -> Tensor:
    """Masked importance sampling, w where low ≤ w ≤ high and 0 elsewhere (Liu et al. 2025).

    What is masked is rejected, so it belongs in no denominator of the loss either.

    Args:
        log_weights: (B, T) log w.
        mask: (B, T) bool.
        low: smallest weight that is kept, positive.
        high: largest weight that is kept.

    Returns:
        (B, T) 0, or from ``low`` to ``high``; 0 on padding.
    """
    weights = torch.where(mask, log_weights, 0.0).exp()
    return torch.where(mask & (low <= weights) & (weights <= high), weights, 0.0)
