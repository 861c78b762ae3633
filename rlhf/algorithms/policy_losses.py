"""Policy losses: what the actor descends, one number per token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.ops import policy_losses
from rlhf.ops.policy_losses import clipped_surrogate, reinforce


@dataclass(kw_only=True, slots=True)
class PolicyLoss(ABC):
    """The loss of one token of the actor."""

    @abstractmethod
    def __call__(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """Loss of each token, (B, T), 0 on padding.

        Args:
            logprobs: (B, T) log π of each token.
            old_logprobs: (B, T) log π_old of each token.
            advantages: (B, T).
            mask: (B, T) bool.
        """

    def clipped(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Tensor:
        """Where the ratio left its bounds and the loss has no gradient, (B, T) bool: nowhere."""
        return torch.zeros_like(logprobs, dtype=torch.bool)


@dataclass(kw_only=True, slots=True)
class Clipped(PolicyLoss):
    """PPO: the clipped surrogate (Schulman et al. 2017; unequal clips: DAPO; numerics D38)."""

    clip_low: float = 0.2
    """How far the ratio π/π_old may fall below 1 while that still pays, from 0 to 1."""
    clip_high: float = 0.2
    """How far the ratio may rise above 1 while that still pays."""

    def __post_init__(self) -> None:
        """Refuse bounds that exclude the ratio 1.

        Raises:
            ValueError: a clip is negative, or the lower one exceeds 1.
        """
        if not 0 <= self.clip_low <= 1:
            raise ValueError(f"Clipped.clip_low must be from 0 to 1, got {self.clip_low}")
        if not self.clip_high >= 0:
            raise ValueError(f"Clipped.clip_high must not be negative, got {self.clip_high}")

    def __call__(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """See `rlhf.ops.policy_losses.clipped_surrogate`."""
        return clipped_surrogate(
            logprobs, old_logprobs, advantages, mask, clip_low=self.clip_low, clip_high=self.clip_high
        )

    def clipped(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Tensor:
        """See `rlhf.ops.policy_losses.clipped`."""
        return policy_losses.clipped(
            logprobs, old_logprobs, advantages, clip_low=self.clip_low, clip_high=self.clip_high
        )


@dataclass(kw_only=True, slots=True)
class Reinforce(PolicyLoss):
    """REINFORCE and RLOO: −A·log π, unbiased at the first update of a rollout (Williams 1992)."""

    def __call__(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """See `rlhf.ops.policy_losses.reinforce`; the old log-probabilities are not read."""
        return reinforce(logprobs, advantages, mask)
