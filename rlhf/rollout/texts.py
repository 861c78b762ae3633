"""Reading a rollout as text."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf.batch import Experience, Rollout
from rlhf.ops.kl import k1


class PromptTexts(Protocol):
    """A prompt set, as far as its texts go."""

    def texts(self, index: Tensor) -> list[str]:
        """Prompt texts of rows."""

    def columns(self, index: Tensor) -> list[dict[str, Any]]:
        """Other columns of rows."""
