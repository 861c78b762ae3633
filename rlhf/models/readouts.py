"""From one number per token to the score of a response. Components for Hydra."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlhf.batch import SequenceBatch
from rlhf.models.scalar import score_at_last

KEY = "score_readout"
"""Under what a saved model's configuration names its readout; absent where that is the last token."""


@dataclass(kw_only=True, slots=True)
class Readout(ABC):
    """How a response's score is read from what the head says of its tokens."""

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, values: Tensor, attention_mask: Tensor, response: Tensor) -> Tensor:
        """(B,) scores.

        Args:
            values: (B, L) of a `rlhf.models.scalar.ScalarModel`.
            attention_mask: (B, L) bool.
            response: (B, L) bool, True on the tokens of the response.
        """

    def scores(self, model: Callable[[Tensor, Tensor], Any], texts: SequenceBatch) -> Tensor:
        """(B,) scores of whole texts, from one forward."""
        values = model(texts.tokens, texts.attention_mask)
        return self(values, texts.attention_mask, texts.mask)


@dataclass(kw_only=True, slots=True)
class LastToken(Readout):
    """What the head says after the last real token (numerics D21)."""

    name: ClassVar[str] = "last_token"

    def __call__(self, values: Tensor, attention_mask: Tensor, response: Tensor) -> Tensor:
        """See `rlhf.models.scalar.score_at_last`."""
        return score_at_last(values, attention_mask)


@dataclass(kw_only=True, slots=True)
class TokenSum(Readout):
    """Σₜ rₜ over the response's tokens: preferences of trajectories (Christiano et al. 2017, eq. 1)."""

    name: ClassVar[str] = "token_sum"

    def __call__(self, values: Tensor, attention_mask: Tensor, response: Tensor) -> Tensor:
        """Sum of what the head says after each token of the response; the prompt's tokens count nothing."""
        return torch.where(response, values, 0.0).sum(1)


READOUTS: dict[str, type[Readout]] = {kind.name: kind for kind in (LastToken, TokenSum)}


def readout_of(model: Any) -> Readout:
    """The readout that a wrapped model was trained with, from its configuration.

    Raises:
        ValueError: the configuration names one that is not known.
    """
    name = getattr(model.model.config, KEY, LastToken.name)
    if name not in READOUTS:
        raise ValueError(f"{KEY} must be one of {', '.join(READOUTS)}, got {name!r}")
    return READOUTS[name]()


def mark_readout(model: Any, readout: Readout) -> None:
    """Have the configuration that is saved with the model name its readout."""
    if not isinstance(readout, LastToken):
        setattr(model.model.config, KEY, readout.name)
