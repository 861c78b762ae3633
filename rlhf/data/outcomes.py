"""Comparisons of two arms as people store them: who was compared, and which was preferred."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from rlhf.data.sets import parsed_rows
from rlhf.data.sources import Row

SIDES = (("a", "b"), ("model_a", "model_b"), ("response_a", "response_b"))
"""Names that the two fields with what was compared have, where none are given."""
OUTCOMES = ("outcome", "winner", "preferred", "label")
"""Names that the field with the outcome has, where none is given; the first that the row has is read."""
ANNOTATORS = ("annotator", "judge")
"""Names that the field with who compared has, where none is given."""
TIES = ("tie", "both", "draw")
"""How a word for a tie begins: ``tie``, ``tie (bothbad)``, ``both_bad``, ``draw``."""


@dataclass(kw_only=True, slots=True)
class Comparison:
    """One arm against another, once or several times with the same outcome."""

    a: str
    b: str
    label: float
    """μ: 1 where a was preferred, ½ for a tie, 0 where b was; a share of several comparisons between."""
    count: float
    annotator: str | None
    item: str
    """What was compared on; annotators of one item and pair can agree or not."""
    where: str


@dataclass(kw_only=True, slots=True)
class OutcomeData:
    """Comparisons: rows of two arms and an outcome."""

    path: str | None = "???"
    """JSONL, Parquet or CSV file, folder, or the name of a data set on the hub."""
    split: str = "train"
    """Part of a folder or of a named data set; a single file is read whole."""
    config: str | None = None
    """Configuration of a named data set."""
    limit: int | None = None
    """Read only the first rows, this many."""
    a_field: str | None = None
    """Field with the one arm; null takes a, model_a or response_a."""
    b_field: str | None = None
    """Field with the other arm; null takes b, model_b or response_b."""
    outcome_field: str | None = None
    """Field with the outcome: the name of a side or of its arm, tie, or 1, 0.5, 0 for a; null takes outcome,
    winner, preferred or label."""
    annotator_field: str | None = None
    """Field with who compared; null takes annotator or judge, if a row has it."""
    item_fields: list[str] = field(default_factory=list)
    """Fields that tell which prompt, turn … was compared on, for the agreement; the two arms always do."""
    count_field: str = "count"
    """Field with how often that was the outcome; 1 where it is absent."""

    def __post_init__(self) -> None:
        """Refuse a limit below 1, and one side without the other."""
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"OutcomeData.limit must be at least 1, got {self.limit}")
        if (self.a_field is None) != (self.b_field is None):
            raise ValueError(
                "OutcomeData.a_field and b_field must be given together or not at all, "
                f"got a_field={self.a_field}, b_field={self.b_field}"
            )

    def load(self) -> list[Comparison]:
        """The rows, checked.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a field is missing or cannot be read as what it should be; names file and line.
        """
        rows, _ = parsed_rows(self.path, self.split, self.config, self.limit, self._parse)
        return rows

    def _parse(self, row: Row) -> Comparison:
        sides = self._sides(row)
        a, b = (_arm(row, name) for name in sides)
        if a == b:
            raise ValueError(
                f"{row.where}: {sides[0]!r} and {sides[1]!r} are both {a!r}, nothing is compared"
            )
        outcome = self.outcome_field or _first(row, OUTCOMES, "an outcome")
        annotator = self.annotator_field or next((name for name in ANNOTATORS if name in row.values), None)
        item = [str(_value(row, name)) for name in self.item_fields]
        return Comparison(
            a=a,
            b=b,
            label=_label(_value(row, outcome), dict(zip(sides, (a, b), strict=True)), row.where, outcome),
            count=_count(row, self.count_field),
            annotator=None if annotator is None else str(_value(row, annotator)),
            item="\x1f".join(item),
            where=row.where,
        )

    def _sides(self, row: Row) -> tuple[str, str]:
        if self.a_field is not None and self.b_field is not None:
            return self.a_field, self.b_field
        first = _first(row, [a for a, _ in SIDES], "the arm that is compared")
        return first, dict(SIDES)[first]


def _first(row: Row, names: Any, what: str) -> str:
    found = next((name for name in names if name in row.values), None)
    if found is None:
        has = ", ".join(map(repr, row.values))
        raise ValueError(f"{row.where}: no field {', '.join(names)} with {what}; the row has {has}")
    return str(found)


def _value(row: Row, name: str) -> Any:
    if row.values.get(name) is None:
        has = ", ".join(map(repr, row.values))
        what = "is null" if name in row.values else f"is not there; the row has {has}"
        raise ValueError(f"{row.where}: field {name!r} {what}")
    return row.values[name]


def _arm(row: Row, name: str) -> str:
    value = _value(row, name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{row.where}: field {name!r} is {value!r}, expected the name of an arm")
    return value


def _label(outcome: Any, sides: dict[str, str], where: str, name: str) -> float:
    """μ of the outcome; ``sides`` maps each side's field to its arm."""
    number = _number(outcome)
    if number is not None and not 0 <= number <= 1:
        raise ValueError(f"{where}: field {name!r} is {outcome!r}, expected 1, 0.5, 0 or a share between")
    readings = {number} if number is not None else set()
    if isinstance(outcome, str):
        readings |= _readings(outcome, sides)
    if len(readings) != 1:
        problem = "could mean several of" if readings else "is none of"
        known = ", ".join([*sides, *sides.values(), "tie"])
        raise ValueError(f"{where}: field {name!r} is {outcome!r}, which {problem} {known}")
    return readings.pop()


def _readings(outcome: str, sides: dict[str, str]) -> set[float]:
    """Everything that a word can mean: a side (model_a, or a), the arm that stands there, a tie."""
    found = set()
    for label, (side, arm) in zip((1.0, 0.0), sides.items(), strict=True):
        if outcome in (side, side.rpartition("_")[2], side.rpartition("_")[2].upper(), arm):
            found.add(label)
    if outcome.lower().startswith(TIES) and outcome not in sides.values():
        found.add(1 / 2)
    return found


def _count(row: Row, name: str) -> float:
    if row.values.get(name) is None:
        return 1.0
    value = _number(row.values[name])
    if value is None or not 0 < value < math.inf:
        raise ValueError(f"{row.where}: field {name!r} is {row.values[name]!r}, expected a positive number")
    return value


def _number(value: Any) -> float | None:
    """A number, also one written as text, as in a CSV file; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
