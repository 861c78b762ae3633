"""References in a recipe's overrides, such as ``{stages.sft}``, and what they mean at each place."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

REFERENCE = re.compile(r"\{([A-Za-z_]+)(?:\.([\w.]+))?\}")
OF_ALL_ROUNDS = re.compile(r"(,?)([^\[\],=]*)\{rounds\.(\w+)\}([^\[\],]*)")
KINDS = "{settings.…}, {start.…}, {stages.…}, {previous.…}, {rounds.…}, {round} and {seed}"


@dataclass(kw_only=True, slots=True)
class Scope:
    """What a reference means at one place of a recipe."""

    settings: Mapping[str, Any]
    start: Mapping[str, str]
    seed: int
    names: list[str]
    """Of all stages, those included that come later."""
    number: int = 0
    """Of the round; 0 before the first."""
    first: dict[str, str] = field(default_factory=dict)
    """Folders of the stages before the rounds, as far as they have been run; the same for those below."""
    stages: dict[str, str] = field(default_factory=dict)
    """Of all stages, the newest of each."""
    rounds: Mapping[str, list[str]] = field(default_factory=dict)
    """Of each stage of a round, in every round so far."""
    previous: Mapping[str, str] | None = None
    """Of the round before, or the start of the first; None outside the rounds."""

    def filled(self, text: str, where: str) -> str:
        """The text with its references replaced.

        Args:
            text: an override.
            where: stands before an error.

        Raises:
            ValueError: a reference to nothing, or to what comes later.
        """

        def of_all_rounds(match: re.Match[str]) -> str:
            comma, before, name, after = match.groups()
            folders = self._of_all_rounds(name, where, may_be_none=bool(comma))
            return "".join(f",{before}{folder}{after}" for folder in folders)[not comma :]

        def of_one(match: re.Match[str]) -> str:
            return self._value(match[0], match[1], match[2], where)

        return REFERENCE.sub(of_one, OF_ALL_ROUNDS.sub(of_all_rounds, text))

    def _value(self, reference: str, kind: str, name: str | None, where: str) -> str:
        if reference in ("{round}", "{seed}"):
            return str(self.number if reference == "{round}" else 1000 * self.seed + self.number)
        tables: dict[str, Mapping[str, Any]] = {
            "settings": self.settings,
            "start": self.start,
            "stages": self.stages,
            "previous": self.previous or {},
        }
        if name is None or kind not in tables:
            raise ValueError(f"{where}: {reference} is no reference; there are {KINDS}")
        if name not in tables[kind]:
            raise ValueError(f"{where}: {self._missing(reference, kind, name, where)}")
        value = tables[kind][name]
        if kind in ("start", "previous"):
            return replace(self, stages=self.first, start={}, previous=None).filled(value, f"start.{name}")
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    def _of_all_rounds(self, name: str, where: str, *, may_be_none: bool) -> list[str]:
        """Folders of a stage in all rounds so far, this one included where it has been run."""
        expect_known(name, self.rounds, f"{where}: {{rounds.{name}}}", "stage in each_round")
        if not self.rounds[name] and not may_be_none:
            raise ValueError(f"{where}: {{rounds.{name}}} comes later; a stage reads what ran before it")
        return self.rounds[name]

    def _missing(self, reference: str, kind: str, name: str, where: str) -> str:
        if kind == "start" and where.startswith("start."):
            return f"{reference} is a start itself; write what it stands for"
        if kind == "stages" and name in self.names:
            return f"{reference} comes later; a stage reads what ran before it"
        if kind == "previous" and self.previous is None:
            return f"{reference} is for stages of each_round"
        if kind == "previous" and name in self.rounds:
            return f"{reference} has no value in the first round; give start.{name}"
        known = {"settings": self.settings, "start": self.start}.get(kind, self.names)
        return f"there is no {reference}{_nearest(name, known)}"


def expect_known(name: str, known: Iterable[str], where: str, what: str) -> None:
    """Refuse a name that is not known, with the nearest one that is.

    Raises:
        ValueError: in one line.
    """
    known = list(known)
    if name not in known:
        raise ValueError(f"{where}: there is no {what} of that name{_nearest(name, known)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    """«; did you mean X?», or what there is."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known) or 'none'}"
