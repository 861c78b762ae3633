"""Losses of the critic, one number per token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from rlhf.ops.value_losses import clipped_value_loss, squared_error


@dataclass(kw_only=True, slots=True)
class ValueLoss(ABC):
    """The loss of one value of the critic."""

    @abstractmethod
    def __call__(self, values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
        """Loss of each value, (B, T), 0 on padding.

        Args:
            values: (B, T) critic's value of the state before each token.
            old_values: (B, T) the same before the update.
            returns: (B, T) its target.
            mask: (B, T) bool.
        """


@dataclass(kw_only=True, slots=True)
class ClippedValueLoss(ValueLoss):
    """Squared error that does not pay for leaving the old value's neighbourhood (numerics D35)."""

    clip: float = 0.2
    """How far a value may move from the old one while that still pays, in units of the score."""

    def __post_init__(self) -> None:
        """Refuse a clip under which nothing can move.

        Raises:
            ValueError: clip is not positive.
        """
        if not self.clip > 0:
            raise ValueError(f"ClippedValueLoss.clip must be positive, got {self.clip}")

    def __call__(self, values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
        """See `rlhf.ops.value_losses.clipped_value_loss`."""
        return clipped_value_loss(values, old_values, returns, mask, clip=self.clip)


@dataclass(kw_only=True, slots=True)
class SquaredError(ValueLoss):
    """½·(V − R)²."""

    def __call__(self, values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
        """See `rlhf.ops.value_losses.squared_error`; the old values are not read."""
        return squared_error(values, returns, mask)
