"""Rows that are too long, and the account of what became of every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from rlhf.data.encoding import Encoded


class Overlong(Enum):
    """What happens to a row with more tokens than allowed."""

    refuse = "refuse"  # an error that names the row
    drop = "drop"  # left out and counted
    truncate = "truncate"  # its end cut off and counted; no end token is written over the cut


@dataclass(kw_only=True, slots=True)
class Report:
    """What became of the rows of a data set."""

    source: str
    read: int = 0
    """Rows read."""
    kept: int = 0
    """Rows in the set."""
    truncated: int = 0
    """Rows among the kept ones that lost tokens."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows left out, by reason."""

    def keep(self, *, truncated: bool = False) -> None:
        """Count one row that is in the set."""
        self.kept += 1
        self.truncated += truncated

    def drop(self, reason: str) -> None:
        """Count one row that is left out."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def __str__(self) -> str:
        reasons = "".join(f", {count} dropped ({reason})" for reason, count in self.dropped.items())
        return f"{self.source}: {self.read} rows read, {self.kept} kept, {self.truncated} truncated{reasons}"


def too_long(length: int, limit: int, *, overlong: Overlong, where: str) -> bool:
    """Whether a row of ``length`` tokens is over ``limit``.

    Raises:
        ValueError: it is, and such rows are refused.
    """
    if length > limit and overlong is Overlong.refuse:
        raise ValueError(f"{where}: has {length} tokens, the limit is {limit} (overlong=refuse)")
    return length > limit


def truncated(texts: Sequence[Encoded], limit: int) -> list[Encoded] | None:
    """The first ``limit`` tokens of each text, or None when no target would be left of one of them."""
    cut = [Encoded(tokens=text.tokens[:limit], targets=text.targets[:limit]) for text in texts]
    return cut if all(any(text.targets) for text in cut) else None
