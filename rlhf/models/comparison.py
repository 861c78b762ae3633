"""One policy's next-token distributions against another's, over rows of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from rlhf.kernels.linear_divergence import Comparison, OtherHead, SweptDivergence, linear_divergence

Compared = SweptDivergence
"""Of an actor: (B, T) each, 0 where nothing is scored."""


@dataclass(kw_only=True, slots=True)
class Against:
    """What `rlhf.models.actor.Actor.forward` is to make of another policy's head over the same tokens."""

    other: OtherHead
    """Over the M scored tokens, row after row."""
    divergence: Comparison
    """An `rlhf.algorithms.divergences.Divergence`."""
    weights: Tensor
    """(B, T) of each token's divergence in the loss."""
    target_weights: Tensor | None = None
    """(B, T) of each token's −log π in the loss; None is 0."""

    def measure(self, scored: Tensor) -> Callable[..., Compared]:
        """For a head that sees the M tokens where ``scored`` (B, T) is True."""
        return partial(
            linear_divergence,
            other=self.other,
            divergence=self.divergence,
            weights=self.weights[scored],
            target_weights=None if self.target_weights is None else self.target_weights[scored],
        )
