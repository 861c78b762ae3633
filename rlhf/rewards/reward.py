"""From a rollout to one score a response: a reward model, or any Python function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from rlhf.batch import Rollout, SequenceBatch
from rlhf.models.readouts import LastToken, Readout
from rlhf.rewards.functions import ScoreFunction, as_scores, call_function
from rlhf.rewards.texts import Decoder, decoded

Columns = list[dict[str, Any]]
"""(B) the other columns of each row."""


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

    def sequences(self, batch: SequenceBatch, decoder: Decoder, columns: Columns | None = None) -> Tensor:
        """(B,) float32 score of each text; its targets are the response, what stands before the prompt.

        ``columns`` are (B) the other columns of the texts' rows; None where rows have none.
        """


@dataclass(kw_only=True, slots=True)
class ModelReward:
    """The score of a reward model, as it was trained: at the last real token (numerics D21), or a sum."""

    model: Callable[[Tensor, Tensor], Tensor]
    """(tokens, attention_mask) → (B, P+T) values."""
    micro_rows: int
    """Rows of one forward on this rank."""
    readout: Readout = field(default_factory=LastToken)
    """From values to a score."""

    @torch.no_grad()
    def __call__(self, rollout: Rollout, texts: Texts) -> Tensor:
        """(B,) float32."""
        response = torch.cat([torch.zeros_like(rollout.prompt_mask), rollout.mask], dim=1)
        return self._scores(rollout.tokens, rollout.attention_mask, response)

    @torch.no_grad()
    def sequences(self, batch: SequenceBatch, decoder: Decoder, columns: Columns | None = None) -> Tensor:
        """(B,) float32."""
        return self._scores(batch.tokens, batch.attention_mask, batch.mask)

    def _scores(self, tokens: Tensor, attention_mask: Tensor, response: Tensor) -> Tensor:
        parts = zip(
            *(rows.split(self.micro_rows) for rows in (tokens, attention_mask, response)), strict=True
        )
        return torch.cat([self.readout(self.model(part, mask), mask, said) for part, mask, said in parts])


@dataclass(kw_only=True, slots=True)
class FunctionReward:
    """The number that a Python function gives each response."""

    function: ScoreFunction
    name: str
    timeout_seconds: float | None = None
    """Longest that one call may take; None waits for ever."""

    def __call__(self, rollout: Rollout, texts: Texts) -> Tensor:
        """(B,) float32, finite.

        Raises:
            ValueError: the function raised, did not return in time, or did not return one finite number a
                response; names the function and, where one is to blame, the response.
        """
        scores = self.of_texts(texts.prompts(rollout), texts.responses(rollout), texts.columns(rollout))
        return scores.to(rollout.tokens.device)

    def sequences(self, batch: SequenceBatch, decoder: Decoder, columns: Columns | None = None) -> Tensor:
        """(B,) float32, finite; without ``columns`` the function sees empty ones.

        Raises:
            ValueError: as above.
        """
        prompts = decoded(batch.tokens, batch.attention_mask & ~batch.mask, decoder)
        responses = decoded(batch.tokens, batch.mask, decoder)
        rows = [{} for _ in prompts] if columns is None else columns
        return self.of_texts(prompts, responses, rows).to(batch.tokens.device)

    def of_texts(self, prompts: list[str], responses: list[str], columns: list[dict[str, Any]]) -> Tensor:
        """(B,) float32 on the CPU, finite.

        Raises:
            ValueError: as above.
        """
        scores = call_function(
            self.function, prompts, responses, columns, name=self.name, timeout_seconds=self.timeout_seconds
        )
        return expect_finite(as_scores(scores, len(prompts), self.name), prompts, self.name)


class NotFinite(ValueError):  # noqa: N818 - an adjective says it
    """A score is NaN or infinite."""


def expect_finite(scores: Tensor, prompts: Sequence[str], name: str) -> Tensor:
    """``scores`` unchanged.

    Raises:
        NotFinite: a score is NaN or infinite; names the row and its prompt.
    """
    bad = (~torch.isfinite(scores)).nonzero()
    if len(bad):
        row = int(bad[0, 0])
        raise NotFinite(
            f"{name} gave {scores[row].item()} to response {row}, prompt {prompts[row]!r}: "
            "a score must be finite"
        )
    return scores
