"""How the next token is chosen from its distribution."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.kernels.drawing import Drawn, drawn, drawn_bytes


@dataclass(kw_only=True, slots=True)
class Decoding(ABC):
    """How the next token is chosen, and for how long."""

    max_new_tokens: int = 24
    """Tokens of a response at most, the end token included."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(
                f"{type(self).__name__}.max_new_tokens must be at least 1, got {self.max_new_tokens}"
            )

    @abstractmethod
    def draw(self, logits: Tensor, noise: Tensor) -> Drawn:
        """Choose one token a row.

        Args:
            logits: (B, V) float32.
            noise: (B,) float64, uniform in [0, 1).

        Returns:
            (B,) tokens, their log-probs under the distribution drawn from, and its entropies.
        """

    def logit_bytes(self, device: torch.device) -> int:
        """What a logit takes while a token is drawn, itself included."""
        return 4


@dataclass(kw_only=True, slots=True)
class Sampling(Decoding):
    """Draw from the exact softmax(logits / temperature), nothing cut off (numerics D13)."""

    temperature: float = 1.0
    """Divides the logits, here and in every log-prob of these responses; positive."""

    def __post_init__(self) -> None:
        Decoding.__post_init__(self)
        _expect_temperature(self)

    def draw(self, logits: Tensor, noise: Tensor) -> Drawn:
        """Invert the cumulative distribution."""
        return drawn(logits, noise, temperature=self.temperature)

    def logit_bytes(self, device: torch.device) -> int:
        """As the draw does."""
        return drawn_bytes(device)


@dataclass(kw_only=True, slots=True)
class Truncated(Decoding):
    """Draw from the likelier tokens alone, for responses that nothing is trained on (numerics D13).

    The tokens that are left after top-k, after top-p of what that left, and after min-p; their probabilities
    are made to sum to 1. Equal logits stay or go together.
    """

    temperature: float = 1.0
    """Divides the logits before anything is cut off; positive."""
    top_k: int | None = None
    """Keep so many of the most likely; null keeps all."""
    top_p: float = 1.0
    """Keep the fewest of the most likely that have this probability together (nucleus); 1 keeps all."""
    min_p: float = 0.0
    """Keep what has this share of the most likely token's probability; 0 keeps all."""

    def __post_init__(self) -> None:
        Decoding.__post_init__(self)
        _expect_temperature(self)
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"Truncated.top_k must be at least 1, got {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"Truncated.top_p must lie in (0, 1], got {self.top_p}")
        if not 0.0 <= self.min_p <= 1.0:
            raise ValueError(f"Truncated.min_p must lie in [0, 1], got {self.min_p}")

    def draw(self, logits: Tensor, noise: Tensor) -> Drawn:
        """Invert the cumulative distribution of what is kept."""
        return drawn(logits, noise, temperature=self.temperature, floors=self.floors(logits))

    def logit_bytes(self, device: torch.device) -> int:
        """A sort and float64 sums for top-p; where the draw is torch's, a copy without what is cut off."""
        least = drawn_bytes(device)
        return max(36 if self.top_p < 1.0 else 4, least if least == 4 else least + 4)

    def floors(self, logits: Tensor) -> Tensor:
        """(B,) the smallest logit of each row of (B, V) that is kept."""
        floors = logits.new_full((len(logits),), -torch.inf)
        if self.top_k is not None:
            floors = logits.topk(min(self.top_k, logits.shape[1]), dim=1).values[:, -1]
        if self.top_p < 1.0:
            floors = self._nucleus(logits.masked_fill(logits < floors.unsqueeze(1), -torch.inf))
        if self.min_p > 0.0:
            likeliest = logits.amax(1)
            floors = torch.maximum(floors, likeliest + self.temperature * math.log(self.min_p))
        return floors

    def _nucleus(self, logits: Tensor) -> Tensor:
        """(B,) the logit with which the sum of probabilities, the largest first, reaches ``top_p``."""
        falling = logits.sort(1, descending=True).values
        probabilities = (falling.double() / self.temperature).softmax(1)
        before = probabilities.cumsum(1) - probabilities
        last = (before < self.top_p).sum(1, keepdim=True) - 1
        return falling.gather(1, last.clamp(min=0)).squeeze(1)  # of NaN none is: nothing is cut


@dataclass(kw_only=True, slots=True)
class Greedy(Decoding):
    """The most likely token, for evaluation only: such responses say nothing about the policy's gradient."""

    def draw(self, logits: Tensor, noise: Tensor) -> Drawn:
        """The first of the largest logits, with log-prob and entropy 0: nothing else could be drawn."""
        nothing = torch.zeros_like(logits[:, 0])
        return Drawn(logits.argmax(1), nothing, nothing)


def _expect_temperature(decoding: Sampling | Truncated) -> None:
    if not 0.0 < decoding.temperature < float("inf"):
        raise ValueError(
            f"{type(decoding).__name__}.temperature must be positive and finite, got {decoding.temperature}"
        )
