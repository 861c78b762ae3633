"""Where the rows of a data set are: what all data sets share, and the account that begins there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from rlhf.data.fitting import Report
from rlhf.data.sources import Row, read_rows

T = TypeVar("T")


@dataclass(kw_only=True, slots=True)
class StoredRows:
    """A data set by file, folder or name."""

    path: str | None = "???"
    """JSONL, Parquet or CSV file, folder, or the name of a data set on the hub."""
    split: str = "train"
    """Part of a folder or of a named data set; a single file is read whole."""
    config: str | None = None
    """Configuration of a named data set."""
    limit: int | None = None
    """Read only the first rows, this many."""

    def __post_init__(self) -> None:
        """Refuse a limit below 1."""
        expect_at_least(self, 1, "limit")

    def parsed(self, parse: Callable[[Row], T]) -> tuple[list[T], Report]:
        """The rows, checked, and the account of them that begins with it.

        Raises:
            FileNotFoundError: no such file.
            ValueError: there is no path, or a row is refused.
        """
        if self.path is None:
            raise ValueError("a data set was given path=null where one is needed")
        rows = read_rows(self.path, self.split, config=self.config)[: self.limit]
        return [parse(row) for row in rows], Report(source=self.path, read=len(rows))


def expect_at_least(component: object, least: int, *names: str) -> None:
    """Refuse a field below ``least``; None is passed over."""
    for name in names:
        value = getattr(component, name)
        if value is not None and value < least:
            raise ValueError(f"{type(component).__name__}.{name} must be at least {least}, got {value}")
