"""From a rollout to one score a response: a reward model, or any Python function."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from rlhf.batch import Rollout, SequenceBatch
from rlhf.models.scalar import score_at_last
from rlhf.rewards.texts import Decoder, decoded

ScoreFunction = Callable[[list[str], list[str], list[dict[str, Any]]], Sequence[float]]
"""(prompts, responses, the prompts' other columns) → one number a response."""


class Texts(Protocol):
    """What a function needs to read a rollout."""

    def prompts(self, rollout: Rollout) -> list[str]:
        """(B) prompt texts."""

    def responses(self, rollout: Rollout) -> list[str]:
        """(B) response texts, without special tokens."""

    def columns(self, rollout: Rollout) -> list[dict[str, Any]]:
        """(B) other columns of the prompts' rows."""


class Reward(Protocol):
    """Scores responses, of a rollout or read from a file."""

    def __call__(self, rollout: Rollout, texts: Texts) -> Tensor:
        """(B,) float32 score of each response of a rollout."""

    def sequences(self, batch: SequenceBatch, decoder: Decoder) -> Tensor:
        """(B,) float32 score of each text; its targets are the response, what stands before the prompt."""


@dataclass(kw_only=True, slots=True)
class ModelReward:
    """The score that a reward model reads at the last real token (numerics D21)."""

    model: Callable[[Tensor, Tensor], Tensor]
    """(tokens, attention_mask) → (B, P+T) values."""
    micro_rows: int
    """Rows of one forward on this rank."""

    @torch.no_grad()
    def __call__(self, rollout: Rollout, texts: Texts) -> Tensor:
        """(B,) float32."""
        return self._scores(rollout.tokens, rollout.attention_mask)

    @torch.no_grad()
    def sequences(self, batch: SequenceBatch, decoder: Decoder) -> Tensor:
        """(B,) float32."""
        return self._scores(batch.tokens, batch.attention_mask)

    def _scores(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        parts = zip(tokens.split(self.micro_rows), attention_mask.split(self.micro_rows), strict=True)
        return torch.cat([score_at_last(self.model(part, mask), mask) for part, mask in parts])


@dataclass(kw_only=True, slots=True)
class FunctionReward:
    """The number that a Python function gives each response."""

    function: ScoreFunction
    name: str

    def __call__(self, rollout: Rollout, texts: Texts) -> Tensor:
        """(B,) float32.

        Raises:
            ValueError: the function returned another number of scores, or something that is no number.
        """
        scores = self.function(texts.prompts(rollout), texts.responses(rollout), texts.columns(rollout))
        return as_scores(scores, len(rollout), self.name).to(rollout.tokens.device)

    def sequences(self, batch: SequenceBatch, decoder: Decoder) -> Tensor:
        """(B,) float32; the function sees no columns.

        Raises:
            ValueError: as above.
        """
        prompts = decoded(batch.tokens, batch.attention_mask & ~batch.mask, decoder)
        responses = decoded(batch.tokens, batch.mask, decoder)
        scores = self.function(prompts, responses, [{} for _ in prompts])
        return as_scores(scores, len(batch), self.name).to(batch.tokens.device)


def as_scores(scores: Sequence[float], rows: int, name: str) -> Tensor:
    """A function's answer as a (B,) float32 tensor.

    Raises:
        ValueError: not ``rows`` numbers.
    """
    try:
        tensor = torch.as_tensor(scores, dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must return a list of {rows} numbers, got {type(scores).__name__}: {error}"
        ) from error
    if tuple(tensor.shape) != (rows,):
        raise ValueError(f"{name} returned scores of shape {tuple(tensor.shape)} for {rows} responses")
    return tensor


def import_function(path: str) -> ScoreFunction:
    """The function at ``package.module:name``.

    Raises:
        ValueError: no such module or name, or not callable.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ValueError(f"a function is given as package.module:name, got {path!r}")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import {path}: {error}") from error
    if not callable(function):
        raise ValueError(f"{path} is a {type(function).__name__}, not a function")
    return function


def expect_finite(scores: Tensor, prompts: Sequence[str], name: str) -> Tensor:
    """``scores`` unchanged.

    Raises:
        ValueError: a score is NaN or infinite; names the row and its prompt.
    """
    bad = (~torch.isfinite(scores)).nonzero()
    if len(bad):
        row = int(bad[0, 0])
        raise ValueError(
            f"{name} gave {scores[row].item()} to response {row}, prompt {prompts[row]!r}: "
            "a score must be finite"
        )
    return scores
