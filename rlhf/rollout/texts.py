"""Reading a rollout as text."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from rlhf.batch import Rollout
from rlhf.rewards.texts import Decoder, decoded


class PromptTexts(Protocol):
    """A prompt set, as far as its texts go."""

    def texts(self, index: Tensor) -> list[str]:
        """Prompt texts of rows."""

    def columns(self, index: Tensor) -> list[dict[str, Any]]:
        """Other columns of rows."""


class RolloutTexts:
    """Prompts, responses and columns of a rollout whose prompts come from one set."""

    def __init__(self, prompts: PromptTexts, tokenizer: Decoder) -> None:
        self._prompts, self._tokenizer = prompts, tokenizer

    def prompts(self, rollout: Rollout) -> list[str]:
        """(B) prompt texts."""
        return self._prompts.texts(rollout.index.cpu())

    def columns(self, rollout: Rollout) -> list[dict[str, Any]]:
        """(B) other columns of the prompts' rows."""
        return self._prompts.columns(rollout.index.cpu())

    def responses(self, rollout: Rollout) -> list[str]:
        """(B) response texts, without special tokens."""
        return decoded(rollout.responses, rollout.mask, self._tokenizer)

    def samples(self, rollout: Rollout, numbers: dict[str, Tensor], count: int) -> list[dict[str, object]]:
        """The first ``count`` rows as text, each with its entry of the (B,) tensors in ``numbers``."""
        few = rollout.rows(torch.arange(min(count, len(rollout))))
        texts = zip(self.prompts(few), self.responses(few), strict=True)
        return [
            {"prompt": prompt, "response": response, "ended": bool(few.ended[row])}
            | {name: float(values[row]) for name, values in numbers.items()}
            for row, (prompt, response) in enumerate(texts)
        ]
