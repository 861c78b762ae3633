"""How much each token weighs in the loss of one optimizer step (numerics D39, D40).

The loss of a step is ``(weights * token_loss).sum()`` over all micro-batches and ranks: the denominators
are global, so neither micro-batching nor the number of ranks appears in a loss. Weights are of torch's
default dtype; padding, and rows whose mask is all False, weigh 0 and are in no denominator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from rlhf.ops.masking import Total


@dataclass(kw_only=True, slots=True)
class Aggregation(ABC):
    """The weight of each token in the loss of one optimizer step."""

    @abstractmethod
    def __call__(self, mask: Tensor, total: Total) -> Tensor:
        """Weights of this rank's rows of the minibatch, (B, T).

        Args:
            mask: (B, T) bool, True on the tokens that the loss counts; this rank's whole minibatch.
            total: sums over ranks.

        Raises:
            ValueError: no token of the minibatch is real, on any rank.
        """


@dataclass(kw_only=True, slots=True)
class TokenMean(Aggregation):
    """Every token counts the same: 1/tokens (PPO, DAPO, supervised fine-tuning)."""

    def __call__(self, mask: Tensor, total: Total) -> Tensor:
        """1/N_tok on each real token."""
        tokens = total(mask.sum())
        if tokens == 0:
            raise ValueError("TokenMean: no response in the minibatch has a token, needs at least 1")
        return mask / tokens


@dataclass(kw_only=True, slots=True)
class SequenceMean(Aggregation):
    """Every response counts the same, whatever its length: 1/(length·responses) (GRPO, GSPO)."""

    def __call__(self, mask: Tensor, total: Total) -> Tensor:
        """1/(lenᵢ·N_seq) on each real token of row i."""
        lengths = mask.sum(1, keepdim=True)  # (B, 1) tokens; 0 for a response kept out of the loss
        responses = total((lengths > 0).sum())
        if responses == 0:
            raise ValueError("SequenceMean: no response in the minibatch has a token, needs at least 1")
        return mask / (lengths.clamp(min=1) * responses)


@dataclass(kw_only=True, slots=True)
class ConstantLength(Aggregation):
    """Sum over tokens, mean over responses: 1/(L·responses), the only one unbiased for the objective."""

    length: int
    """L, in tokens: 1 is the exact policy gradient (RLOO), the longest response Dr. GRPO."""

    def __post_init__(self) -> None:
        """Refuse a length that is none.

        Raises:
            ValueError: length is not positive.
        """
        if self.length < 1:
            raise ValueError(f"ConstantLength.length must be at least 1, got {self.length}")

    def __call__(self, mask: Tensor, total: Total) -> Tensor:
        """1/(L·N_seq) on each real token."""
        responses = total(mask.any(1).sum())
        if responses == 0:
            raise ValueError("ConstantLength: no response in the minibatch has a token, needs at least 1")
        return mask / (self.length * responses)
