"""How the loss corrects for a sampler that is not the scorer: a detached, bounded weight per token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from rlhf.ops.importance import masked_weights, sequence_log_weights, token_log_weights, truncated_weights


class Level(Enum):
    """Whose probability the importance weight compares."""

    token = "token"  # each token's own; biased for what came before it, of low variance
    sequence = "sequence"  # the whole response's, on all of its tokens; unbiased but for the bound


@dataclass(kw_only=True, slots=True)
class Correction(ABC):
    """The weight of each token's policy loss, in the place of π_old/π_sampler."""

    level: Level = Level.token
    """token weighs each token by its own ratio, sequence each response by the product over its tokens."""

    @abstractmethod
    def __call__(self, old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> Tensor:
        """Weights, (B, T), detached, bounded, 0 on padding.

        Args:
            old_logprobs: (B, T) log π_old of each token, as the scorer sees it.
            sampler_logprobs: (B, T) log-prob of each token as the sampler drew it.
            mask: (B, T) bool.
        """

    def kept(self, old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> Tensor:
        """(B, T) bool, the tokens that stay in the loss, numerator and denominators: all real ones."""
        return mask

    def log_weights(self, old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> Tensor:
        """(B, T) log π_old/π_sampler at ``level``, 0 on padding."""
        weigh = sequence_log_weights if self.level is Level.sequence else token_log_weights
        return weigh(old_logprobs, sampler_logprobs, mask)


@dataclass(kw_only=True, slots=True)
class Truncated(Correction):
    """min(w, cap): truncated importance sampling (Yao et al. 2025)."""

    cap: float = 2.0
    """Largest weight, at least 1."""

    def __post_init__(self) -> None:
        """Refuse a cap under which equal policies would be reweighted.

        Raises:
            ValueError: cap is below 1.
        """
        if not self.cap >= 1:
            raise ValueError(f"Truncated.cap must be at least 1, got {self.cap}")

    def __call__(self, old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> Tensor:
        """See `rlhf.ops.importance.truncated_weights`."""
        log_weights = self.log_weights(old_logprobs, sampler_logprobs, mask)
        return truncated_weights(log_weights, mask, cap=self.cap)


@dataclass(kw_only=True, slots=True)
class Masked(Correction):
    """w where it lies within bounds, else 0: masked importance sampling (Liu et al. 2025)."""

    low: float = 0.5
    """Smallest weight that is kept, above 0 and at most 1."""
    high: float = 2.0
    """Largest weight that is kept, at least 1."""

    def __post_init__(self) -> None:
        """Refuse bounds that exclude the weight 1.

        Raises:
            ValueError: low or high lies on the wrong side of 1, or low is not positive.
        """
        if not 0 < self.low <= 1:
            raise ValueError(f"Masked.low must be above 0 and at most 1, got {self.low}")
        if not self.high >= 1:
            raise ValueError(f"Masked.high must be at least 1, got {self.high}")

    def __call__(self, old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> Tensor:
        """See `rlhf.ops.importance.masked_weights`."""
        log_weights = self.log_weights(old_logprobs, sampler_logprobs, mask)
        return masked_weights(log_weights, mask, low=self.low, high=self.high)

    def kept(self, old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> Tensor:
        """(B, T) bool, the tokens whose weight lies within the bounds."""
        return self(old_logprobs, sampler_logprobs, mask) > 0
