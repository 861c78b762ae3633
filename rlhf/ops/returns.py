"""Advantages and returns of a trajectory, computed backward in time."""

from __future__ import annotations

import torch
from torch import Tensor


def returns_to_go(rewards: Tensor, mask: Tensor) -> Tensor:
    """Undiscounted sum of the rewards from each token on, Gₜ = Σ_{s≥t} rₛ (Williams 1992).

    Args:
        rewards: (B, T) reward received for token t.
        mask: (B, T) bool, True on response tokens; padding is not read.

    Returns:
        (B, T) float64, 0 on padding.
    """
    to_go = torch.where(mask, rewards, 0.0).double().flip(1).cumsum(1).flip(1)
    return torch.where(mask, to_go, 0.0)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al. 2016, eq. 16; numerics D31).

        δₜ = rₜ + γ·V(sₜ₊₁) − V(sₜ)
        Âₜ = δₜ + γλ·Âₜ₊₁

    The response ends at its last real token, whether by an end token or by the length limit: V and Â are
    0 after it, nothing is bootstrapped (D29). ``lam=1`` gives the Monte Carlo return minus the value,
    ``lam=0`` the one-step temporal-difference error.

    Args:
        rewards: (B, T) reward received for token t.
        values: (B, T) value of the state before token t.
        mask: (B, T) bool, True on response tokens; False only on right padding, which is not read.
        gamma: discount per token, in [0, 1].
        lam: mixing parameter λ, in [0, 1].

    Returns:
        advantages: (B, T), 0 on padding.
        returns: (B, T) λ-returns ``advantages + values``, 0 on padding.
    """
    rewards = torch.where(mask, rewards, 0.0)
    values = torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = values.new_zeros(len(values))  # (B,)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = delta + gamma * lam * next_advantage
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, advantages + values
