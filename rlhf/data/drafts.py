"""Responses that failed, with whatever is known of their tasks: what imitation from feedback starts from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.data.sources import Row, read_rows

OWN = ("prompt", "response", "score", "ended", "best_of")
"""Columns that belong to a response and not to its task."""


@dataclass(kw_only=True, slots=True)
class Draft:
    """A response that failed."""

    prompt: str
    response: str
    columns: dict[str, Any]
    """Of its row and of its task's; what belongs to the failed response alone is left out."""
    where: str


def failed_drafts(
    paths: Sequence[str], *, threshold: float, tasks: str | None = None
) -> tuple[list[Draft], int]:
    """The responses that score less than ``threshold``, in their order, and how many were read.

    One that was sampled twice is there twice: what is learnt follows the distribution that proposed it.

    Args:
        paths: scored responses, whatever ``read_rows`` takes.
        threshold: least score of a response that has not failed.
        tasks: the prompts' file, whose other columns are looked up by the prompt; None where the rows have
            all that is needed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a row lacks prompt, response or score, or its prompt is not among the tasks'.
    """
    known = None if tasks is None else {_text(row, "prompt"): row.values for row in read_rows(tasks)}
    rows = [row for path in paths for row in read_rows(path)]
    failed = [row for row in rows if _score(row) < threshold]
    return [_draft(row, known, tasks) for row in failed], len(rows)


def _draft(row: Row, known: dict[str, dict[str, Any]] | None, tasks: str | None) -> Draft:
    prompt = _text(row, "prompt")
    if known is not None and prompt not in known:
        raise ValueError(f"{row.where}: its prompt is none of those in {tasks}")
    task = {} if known is None else known[prompt]
    columns = {name: value for name, value in (task | row.values).items() if name not in OWN}
    return Draft(prompt=prompt, response=_text(row, "response"), columns=columns, where=row.where)


def _text(row: Row, name: str) -> str:
    value = row.values.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{row.where}: field {name!r} is {value!r}, expected text")
    return value


def _score(row: Row) -> float:
    value = row.values.get("score")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(
            f"{row.where}: field 'score' is {value!r}, expected a finite number; rlhf score gives it one"
        )
    return float(value)
