"""Scored responses, as ``rlhf generate`` and ``rlhf score`` write them, and what became of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf.data.rows import Prompt, supervised_row
from rlhf.data.sources import Row, read_rows


@dataclass(kw_only=True, slots=True)
class ScoredRow:
    """A prompt, a response, and what a reward says of it."""

    prompt: Prompt
    response: str
    score: float
    where: str


@dataclass(kw_only=True, slots=True)
class Account:
    """What became of the rows of a selection."""

    read: int = 0
    """Rows read."""
    written: Counter[str] = field(default_factory=Counter)
    """Rows written, by what they are marked with."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows left out, by reason."""

    def __str__(self) -> str:
        return f"{self.read} rows read, {_listed(self.written)} written, {_listed(self.left_out)} left out"


def scored_rows(paths: Sequence[str], *, score_field: str, keep_cut: bool) -> tuple[list[ScoredRow], Account]:
    """The rows of all files in their order, without responses that are empty.

    Args:
        paths: whatever ``read_rows`` takes.
        score_field: where the score is.
        keep_cut: keep responses that were cut off, which the field ``ended`` says.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a row lacks prompt, response or score, or one of them is of the wrong kind.
    """
    account, rows = Account(), []
    for path in paths:
        for row in read_rows(path):
            account.read += 1
            score = _score(row, score_field)
            reason = _unfit(row, keep_cut=keep_cut)
            if reason is None:
                text = supervised_row(row)
                rows.append(
                    ScoredRow(prompt=text.prompt, response=text.response, score=score, where=row.where)
                )
            else:
                account.left_out[reason] += 1
    return rows, account


def _score(row: Row, name: str) -> float:
    if name not in row.values:
        found = ", ".join(map(repr, row.values))
        raise ValueError(f"{row.where}: no score {name!r}, the row has {found}; rlhf score gives it one")
    value = row.values[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{row.where}: field {name!r} is {value!r}, expected a finite number")
    return float(value)


def _unfit(row: Row, *, keep_cut: bool) -> str | None:
    """Why nothing can be learnt from the row."""
    ended: Any = row.values.get("ended", True)
    if not isinstance(ended, bool):
        raise ValueError(f"{row.where}: field 'ended' is {ended!r}, expected true or false")
    if row.values.get("response") == "":
        return "empty"
    return None if ended or keep_cut else "cut off"


def _listed(counts: Counter[str]) -> str:
    """``3``, or ``3 (2 a, 1 b)``."""
    named = ", ".join(f"{count} {name}" for name, count in counts.items() if name and count)
    return f"{counts.total()} ({named})" if named else f"{counts.total()}"
