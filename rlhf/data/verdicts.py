"""What people said of two things: the words for an outcome, and rows of two responses with one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.data.sources import Row

RESPONSES = (("response_a", "response_b"), ("a", "b"))
"""Names of the two fields with responses that were compared; where a row has all four, a and b name arms."""
OUTCOMES = ("outcome", "winner", "preferred", "label")
"""Names that the field with the outcome has, where none is given; the first that the row has is read."""
TIE = re.compile(r"(ties?|tied|draw|both|bothbad)(?![a-z0-9])", re.IGNORECASE)
"""How a word for a tie begins: ``tie``, ``tie (bothbad)``, ``both_bad``, ``draw``."""
SHOWN = 60
"""Characters of an outcome that an error repeats."""


@dataclass(kw_only=True, slots=True)
class Verdict:
    """Which of a row's two responses is better."""

    better: str
    """Field of the response that was preferred; of a tie, or where nobody said, the first."""
    worse: str
    """Field of the other."""
    label: float | None
    """μ: 1 where ``better`` was preferred, ½ for a tie, a share between; None where nobody said."""


def verdict_of(row: Row, *others: str) -> Verdict | None:
    """The verdict of a row with two responses by the names of `RESPONSES`; None for any other row.

    Args:
        row: as it was stored.
        others: fields that make it another kind of row.

    Raises:
        ValueError: the row has no field for an outcome, or what stands there is none.
    """
    sides = response_fields(row)
    if sides is None or any(row.values.get(name) is not None for name in others):
        return None
    first, second = sides
    name = first_field(row, OUTCOMES, "an outcome")
    if row.values[name] is None:
        return Verdict(better=first, worse=second, label=None)
    arms = {side: row.values[side] if isinstance(row.values[side], str) else side for side in sides}
    label = outcome_label(row.values[name], arms, f"{row.where}: field {name!r}", sides)
    if label < 1 / 2:
        return Verdict(better=second, worse=first, label=1 - label)
    return Verdict(better=first, worse=second, label=label)


def winning_sides(row: Row, chosen: str, rejected: str) -> tuple[str, str] | None:
    """The fields with the better and the worse response; None for a verdict that names no winner.

    Args:
        row: as it was stored.
        chosen: field of the better response of a row that is no verdict.
        rejected: field of the other.

    Raises:
        ValueError: as `verdict_of`; or the outcome is a share, of which nobody can be said to have won.
    """
    verdict = verdict_of(row, chosen)
    if verdict is None:
        return chosen, rejected
    if verdict.label is None or verdict.label == 1 / 2:
        return None
    if verdict.label < 1:
        raise ValueError(
            f"{row.where}: the outcome is a share, {verdict.label:g} for {verdict.better!r}, which only rlhf "
            "reward reads; a pair needs a winner, or a tie, which is left out"
        )
    return verdict.better, verdict.worse


def response_fields(row: Row) -> tuple[str, str] | None:
    """The names of the two responses of a row that were compared, or are to be; None where it has none."""
    return next(
        (sides for sides in RESPONSES if all(row.values.get(name) is not None for name in sides)), None
    )


def first_field(row: Row, names: Sequence[str], what: str) -> str:
    """The first of ``names`` that the row has a value for, or else has; ``what`` names it in the error.

    Raises:
        ValueError: it has none of them.
    """
    filled = (name for name in names if row.values.get(name) is not None)
    found = next(filled, next((name for name in names if name in row.values), None))
    if found is None:
        has = ", ".join(map(repr, row.values))
        raise ValueError(f"{row.where}: no field {', '.join(names)} with {what}; the row has {has}")
    return found


def outcome_label(outcome: Any, sides: Mapping[str, str], what: str, known: Sequence[str]) -> float:
    """μ of an outcome, from 0 to 1.

    Args:
        outcome: as it was stored.
        sides: what was compared, by the field of each side.
        what: where it stands, for errors.
        known: what it could have been besides a tie, for errors.

    Raises:
        ValueError: it is no number from 0 to 1 and no known word, or could mean several things.
    """
    number = as_number(outcome)
    if number is not None and not 0 <= number <= 1:
        raise ValueError(f"{what} is {outcome!r}, expected 1, 0.5, 0 or a share between")
    readings = {number} if number is not None else set()
    if isinstance(outcome, str):
        readings |= _readings(outcome, sides)
    if len(readings) != 1:
        problem = "could mean several of" if readings else "is none of"
        raise ValueError(f"{what} is {outcome!r:.{SHOWN}}, which {problem} {', '.join([*known, 'tie'])}")
    return readings.pop()


def _readings(outcome: str, sides: Mapping[str, str]) -> set[float]:
    """Everything that a word can mean: a side (model_a, or a), what stands there, a tie."""
    found = set()
    for label, (side, arm) in zip((1.0, 0.0), sides.items(), strict=True):
        letter = side.rpartition("_")[2]
        if outcome in (side, letter, letter.upper(), arm):
            found.add(label)
    tie = TIE.match(outcome)
    if tie and (tie.group() == outcome or outcome not in sides.values()):
        found.add(1 / 2)
    return found


def as_number(value: Any) -> float | None:
    """A number, also one written as text, as in a CSV file; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
