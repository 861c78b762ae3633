"""How the next token is chosen from its distribution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.ops.logprobs import vocabulary_logprobs


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
    def draw(self, logits: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Choose one token a row.

        Args:
            logits: (B, V) float32.
            noise: (B,) float64, uniform in [0, 1).

        Returns:
            tokens (B,) int64 and their log-probs (B,) under the distribution drawn from.
        """


@dataclass(kw_only=True, slots=True)
class Sampling(Decoding):
    """Draw from the exact softmax(logits / temperature), nothing cut off (numerics D13)."""

    temperature: float = 1.0
    """Divides the logits, here and in every log-prob of these responses; positive."""

    def __post_init__(self) -> None:
        Decoding.__post_init__(self)
        if not 0.0 < self.temperature < float("inf"):
            raise ValueError(f"Sampling.temperature must be positive and finite, got {self.temperature}")

    def draw(self, logits: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Invert the cumulative distribution, in float64 so that rare tokens keep their probability."""
        logprobs = vocabulary_logprobs(logits, self.temperature)
        cumulative = logprobs.double().exp().cumsum(1)
        level = noise.unsqueeze(1) * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, level, right=True)  # the first that exceeds level < total
        tokens = tokens.clamp(max=logits.shape[1] - 1)  # of NaN none does; the log-prob is NaN too
        return tokens.squeeze(1), logprobs.gather(1, tokens).squeeze(1)


@dataclass(kw_only=True, slots=True)
class Greedy(Decoding):
    """The most likely token, for evaluation only: such responses say nothing about the policy's gradient."""

    def draw(self, logits: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The first of the largest logits, with log-prob 0: nothing else could have been drawn."""
        return logits.argmax(1), torch.zeros_like(logits[:, 0])
