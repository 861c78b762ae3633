"""Rows by category, and categories by section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True, slots=True)
class Categories:
    """Which rows belong together, and how the groups are weighted."""

    category_field: str = "subset"
    """Column with a row's category; rows without it are not divided."""
    section_field: str = "section"
    """Column with the section that a row's category belongs to, where sections does not say."""
    sections: dict[str, list[str]] = field(default_factory=dict)
    """Categories of each section. Without sections every category is one."""
    weights: dict[str, float] = field(default_factory=dict)
    """What a category counts as inside its section, in rows; the number of its rows where it is not named."""
    ties: str = "Ties"
    """Category of candidates that is scored as RewardBench 2 scores its ties subset, in any case."""

    def __post_init__(self) -> None:
        """Refuse weights that are not positive, and a category in two sections."""
        if bad := [name for name, weight in self.weights.items() if not 0 < weight < float("inf")]:
            raise ValueError(
                f"Categories.weights must be positive and finite, got {self.weights[bad[0]]} for {bad[0]}"
            )
        named = [name for names in self.sections.values() for name in names]
        if twice := [name for name in named if named.count(name) > 1]:
            raise ValueError(f"Categories.sections must name a category once, got {twice[0]} twice")

    def of(self, rows: Sequence[tuple[Mapping[str, Any], str]]) -> Division | None:
        """The division of rows, each given by its columns and where it stood; None without categories.

        Raises:
            ValueError: some rows have a category and others none, one is no text, a category lies in two
                sections or in none, or ``weights`` names one that neither rows nor ``sections`` have.
        """
        names = [_text(columns, self.category_field, where) for columns, where in rows]
        if all(name is None for name in names):
            self._expect_none_named()
            return None
        if None in names:
            where = rows[names.index(None)][1]
            raise ValueError(f"{where}: no field {self.category_field!r}, which other rows have")
        members: dict[str, list[int]] = {}
        for number, name in enumerate(names):
            members.setdefault(str(name), []).append(number)
        self._expect_known(members)
        return Division(members=members, sections=self._sections(members, rows), weights=self.weights)

    def _sections(
        self, members: Mapping[str, list[int]], rows: Sequence[tuple[Mapping[str, Any], str]]
    ) -> dict[str, list[str]]:
        if self.sections:
            placed = {name for names in self.sections.values() for name in names}
            if left := [name for name in members if name not in placed]:
                raise ValueError(f"categories.sections has no section for the category {left[0]!r}")
            inside = {
                section: [name for name in names if name in members]
                for section, names in self.sections.items()
            }
            return {section: names for section, names in inside.items() if names}
        found: dict[str, list[str]] = {}
        for name, numbers in members.items():
            own = {_text(rows[number][0], self.section_field, rows[number][1]) for number in numbers}
            if len(own) > 1:
                listed = ", ".join(sorted(map(str, own)))
                raise ValueError(f"the category {name!r} lies in several sections: {listed}")
            found.setdefault(own.pop() or name, []).append(name)
        return found

    def _expect_known(self, members: Mapping[str, list[int]]) -> None:
        known = {*members, *(name for names in self.sections.values() for name in names)}
        if unknown := sorted(set(self.weights) - known):
            raise ValueError(
                f"categories.weights names {unknown[0]!r}; categories are {', '.join(sorted(known))}"
            )

    def _expect_none_named(self) -> None:
        if self.sections or self.weights:
            raise ValueError(
                f"categories.sections and categories.weights need a field {self.category_field!r}, "
                "which no row has"
            )


@dataclass(kw_only=True, slots=True)
class Division:
    """Rows divided into categories, and categories into sections."""

    members: dict[str, list[int]]
    """Numbers of the rows of each category."""
    sections: dict[str, list[str]]
    weights: dict[str, float]

    def weight(self, category: str) -> float:
        """Rows that the category counts as."""
        return self.weights.get(category, len(self.members[category]))


def _text(columns: Mapping[str, Any], name: str, where: str) -> str | None:
    value = columns.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{where}: field {name!r} is {value!r}, expected text")
    return value
