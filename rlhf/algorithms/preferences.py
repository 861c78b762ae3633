"""Losses of a reward model, one number per pair."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from rlhf.ops.preference_losses import bradley_terry, centring


@dataclass(kw_only=True, slots=True)
class PairLoss(ABC):
    """The loss of one pair of scores."""

    @abstractmethod
    def __call__(self, chosen: Tensor, rejected: Tensor, margin: Tensor) -> Tensor:
        """Loss of each pair, (B,) in nats.

        Args:
            chosen: (B,) scores of the better responses.
            rejected: (B,) scores of the others.
            margin: (B,) by how much the chosen score should exceed the other; 0 when not given.
        """


@dataclass(kw_only=True, slots=True)
class BradleyTerry(PairLoss):
    """Negative log-likelihood that the chosen response wins, −log σ(Δ − margin) (numerics D22)."""

    center: float = 0.0
    """η: weight of (s_chosen + s_rejected)², which pins the mean score; 0 leaves it free."""

    def __post_init__(self) -> None:
        """Refuse to push the scores away from 0.

        Raises:
            ValueError: center is negative.
        """
        if not self.center >= 0:
            raise ValueError(f"BradleyTerry.center must not be negative, got {self.center}")

    def __call__(self, chosen: Tensor, rejected: Tensor, margin: Tensor) -> Tensor:
        """See `rlhf.ops.preference_losses`."""
        return bradley_terry(chosen, rejected, margin) + self.center * centring(chosen, rejected)
