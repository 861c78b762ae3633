"""The scorers of ``reasoning-gym``, for rows that ``python -m rlhf.data.reasoning_gym`` wrote."""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from rlhf.rewards.answers import after_last
from rlhf.rewards.verifiers import Verifier, column


@dataclass(kw_only=True, slots=True)
class ReasoningGym(Verifier):
    """What the task's own scorer says of the response, blanks around it removed."""

    after: str = ""
    """Only what follows the last occurrence of this text counts; a response without it scores 0."""
    partial_credit: bool = False
    """Keep scores between 0 and 1. Many tasks give some to any text at all, so by default those are 0."""

    def prepare(self) -> None:
        """The package, with all its tasks."""
        _factory()

    def verify(self, prompt: str, response: str, row: dict[str, Any]) -> float:
        """The score in [0, 1]; 0 for an empty answer and for one that the scorer fails on.

        Raises:
            ValueError: the package is not installed, the task unknown, or a column absent.
        """
        scorer, entry = _scorer(column(row, "task")), column(row, "entry")
        answer = after_last(response, self.after)
        if answer is None or not answer.strip():
            return 0.0
        try:
            score = float(scorer(answer.strip(), entry))
        except Exception:  # scorers were written for answers of the right form
            return 0.0
        return score if self.partial_credit else float(score >= 1.0)


@cache
def _scorer(task: str) -> Callable[[str, dict[str, Any]], float]:
    factory = _factory()
    if task not in factory.DATASETS:
        raise ValueError(f"reasoning-gym has no task {task!r}")
    scorer: Callable[[str, dict[str, Any]], float] = factory.get_score_answer_fn(task)
    return scorer


@cache
def _factory() -> types.ModuleType:
    try:
        return importlib.import_module("reasoning_gym.factory")
    except ImportError as error:
        raise ValueError('reasoning-gym is not installed; get it with: pip install "rlhf[tasks]"') from error
