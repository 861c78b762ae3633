"""Verifiers: 1 where a response is right by the columns of its prompt's row, 0 where it is not."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from rlhf.rewards.answers import after_last, boxed, normalised, number
from rlhf.rewards.sources import RewardSource
from rlhf.rewards.time_limit import TimeLimitError, time_limit


@dataclass(kw_only=True, slots=True)
class Verifier(RewardSource, ABC):
    """Checks responses one by one; a function of prompts, responses and columns like any other."""

    timeout_seconds: float = 5.0
    """Longest that the check of one response may take; one that takes longer scores 0."""

    def __post_init__(self) -> None:
        """Refuse a limit that is not positive."""
        if not self.timeout_seconds > 0:
            raise ValueError(
                f"{type(self).__name__}.timeout_seconds must be positive, got {self.timeout_seconds}"
            )

    def __call__(
        self, prompts: list[str], responses: list[str], columns: list[dict[str, Any]]
    ) -> list[float]:
        """One score a response, in [0, 1].

        Raises:
            ValueError: a row lacks a column that the check needs.
        """
        self.prepare()
        cases = zip(prompts, responses, columns, strict=True)
        return [self._within_time(prompt, response, row) for prompt, response, row in cases]

    def _within_time(self, prompt: str, response: str, row: dict[str, Any]) -> float:
        try:
            with time_limit(self.timeout_seconds):
                return self.verify(prompt, response, row)
        except TimeLimitError:
            return 0.0

    def prepare(self) -> None:
        """Import what the checks need, before the clock of the first one runs: half an import stays half."""

    @abstractmethod
    def verify(self, prompt: str, response: str, row: dict[str, Any]) -> float:
        """The score of one response; ``row`` holds the other columns of the prompt's row."""


@dataclass(kw_only=True, slots=True)
class ExactMatch(Verifier):
    """The response is the row's answer, but for case, blanks, and quotation marks and stops around it."""

    answer: str = "answer"
    """Column with the answer: a string, a number, or a list of those, any of which is right."""
    after: str = ""
    """Only what follows the last occurrence of this text counts; a response without it scores 0."""

    def verify(self, prompt: str, response: str, row: dict[str, Any]) -> float:
        """1 or 0."""
        final = after_last(response, self.after)
        wanted = {normalised(answer) for answer in answers(row, self.answer)}
        return float(final is not None and normalised(final) in wanted - {""})


@dataclass(kw_only=True, slots=True)
class MathAnswer(Verifier):
    r"""The response's number is the row's: what its last ``\boxed{}`` holds, else the last number in it.

    Numbers are compared exactly as fractions, so that 0.5, 1/2 and ``\frac{1}{2}`` are one; commas between
    thousands, currency and percent signs do not count. A box without a number is compared as text.
    """

    answer: str = "answer"
    """Column with the answer: a number, text, a list of those, or a solution that ends in #### or a box."""

    def verify(self, prompt: str, response: str, row: dict[str, Any]) -> float:
        """1 or 0."""
        wanted = map(_solution, answers(row, self.answer))  # a row without an answer is refused either way
        box = boxed(response)
        found = number(response) if box is None else _value(box)
        return float(found is not None and found in wanted)


@dataclass(kw_only=True, slots=True)
class Format(Verifier):
    """The whole response matches a regular expression, in which a dot also matches a line break."""

    pattern: str = "???"
    """The regular expression, of Python's ``re``."""

    def __post_init__(self) -> None:
        """Refuse what is no regular expression."""
        Verifier.__post_init__(self)
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(
                f"Format.pattern must be a regular expression, got {self.pattern!r}: {error}"
            ) from error

    def verify(self, prompt: str, response: str, row: dict[str, Any]) -> float:
        """1 or 0."""
        return float(re.fullmatch(self.pattern, response, re.DOTALL) is not None)


def column(row: dict[str, Any], name: str) -> Any:
    """A column of the prompt's row.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in row:
        others = ", ".join(map(repr, row)) or "no other column"
        raise ValueError(f"the prompt's row has no column {name!r}, it has {others}")
    return row[name]


def answers(row: dict[str, Any], name: str) -> list[str]:
    """Every right answer of a row, as text.

    Raises:
        ValueError: the column is absent, empty, or holds something else than text and numbers.
    """
    found = column(row, name)
    given = found if isinstance(found, list) else [found]
    if not given or any(isinstance(one, bool) or not isinstance(one, str | int | float) for one in given):
        raise ValueError(f"the row's column {name!r} must be text, a number or a list of them, got {found!r}")
    return [str(one) for one in given]


def _solution(answer: str) -> Fraction | str:
    """What a row's answer is worth."""
    box = boxed(answer)
    return _value(after_last(answer, "####") or answer if box is None else box)


def _value(text: str) -> Fraction | str:
    """A fraction, or the normalised text where there is more than a number."""
    whole = number(text, whole=True)
    return normalised(text) if whole is None else whole
