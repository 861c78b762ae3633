"""Comparisons of two arms as people store them: who was compared, and which was preferred."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from rlhf.data.sources import Row
from rlhf.data.stored import StoredRows
from rlhf.data.verdicts import OUTCOMES, as_number, first_field, outcome_label

SIDES = (("a", "b"), ("model_a", "model_b"), ("response_a", "response_b"))
"""Names that the two fields with what was compared have, where none are given."""
ANNOTATORS = ("annotator", "judge")
"""Names that the field with who compared has, where none is given."""


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
class OutcomeData(StoredRows):
    """Comparisons: rows of two arms and an outcome."""

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
        StoredRows.__post_init__(self)
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
        rows, _ = self.parsed(self._parse)
        return rows

    def _parse(self, row: Row) -> Comparison:
        sides = self._sides(row)
        a, b = (_arm(row, name) for name in sides)
        if a == b:
            raise ValueError(
                f"{row.where}: {sides[0]!r} and {sides[1]!r} are both {a!r}, nothing is compared"
            )
        outcome = self.outcome_field or first_field(row, OUTCOMES, "an outcome")
        annotator = self.annotator_field or next((name for name in ANNOTATORS if name in row.values), None)
        item = [str(_value(row, name)) for name in self.item_fields]
        return Comparison(
            a=a,
            b=b,
            label=outcome_label(
                _value(row, outcome),
                dict(zip(sides, (a, b), strict=True)),
                f"{row.where}: field {outcome!r}",
                [*sides, a, b],
            ),
            count=_count(row, self.count_field),
            annotator=None if annotator is None else str(_value(row, annotator)),
            item="\x1f".join(item),
            where=row.where,
        )

    def _sides(self, row: Row) -> tuple[str, str]:
        if self.a_field is not None and self.b_field is not None:
            return self.a_field, self.b_field
        first = first_field(row, [a for a, _ in SIDES], "the arm that is compared")
        return first, dict(SIDES)[first]


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


def _count(row: Row, name: str) -> float:
    if row.values.get(name) is None:
        return 1.0
    value = as_number(row.values[name])
    if value is None or not 0 < value < math.inf:
        raise ValueError(f"{row.where}: field {name!r} is {row.values[name]!r}, expected a positive number")
    return value
