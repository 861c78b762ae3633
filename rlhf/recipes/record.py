"""What a stage has been run with, kept in its folder: whether it is finished, and still the same.

``stage.json`` is written before the stage starts and, as finished, after it has ended well; each time under
another name first, then renamed. A folder without one was not made by a recipe and is never touched.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FILE = "stage.json"
PARTIAL = f".{FILE}.partial"


@dataclass(kw_only=True, slots=True)
class Record:
    """A stage that was begun."""

    command: str
    settings: dict[str, Any]
    """Its whole configuration by dotted key, as JSON has it, without those that change no result."""
    follows: str
    """Fingerprint of the stage before it, which holds that of the one before that; empty for the first."""
    finished: bool = False

    @property
    def fingerprint(self) -> str:
        """Of this stage and, through ``follows``, of all before it."""
        told = json.dumps([self.command, self.settings, self.follows], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Keep it in the folder, which is made when it is not there."""
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / PARTIAL).open("w", encoding="utf-8") as file:
            file.write(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        (folder / PARTIAL).replace(folder / FILE)


def read(folder: Path) -> Record | None:
    """The record of a stage's folder; None where nothing has been begun.

    Raises:
        ValueError: the folder holds something else, or the record cannot be read.
    """
    file = folder / FILE
    if not file.exists():
        if not folder.exists() or [item.name for item in folder.iterdir()] in ([], [PARTIAL]):
            return None
        raise ValueError(f"{folder} is in the way: no stage of this recipe has made it")
    try:
        return Record(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise ValueError(f"{file} is no record of a stage: remove {folder} to run the stage again") from None


def expect_same(before: Record, now: Record, folder: Path) -> None:
    """Refuse to take what was made otherwise for what the recipe says now.

    Raises:
        ValueError: names the key, what it was and what it is.
    """
    change = _change({"command": before.command} | before.settings, {"command": now.command} | now.settings)
    how = None if change is None else f"with {change}"
    if how is None and before.follows != now.follows:
        how = "after stages with other settings"
    if how is not None:
        done = "run" if before.finished else "begun"
        raise ValueError(
            f"{folder} has been {done} {how}: choose another name=…, or remove it and the stages "
            "after it to run them again; nothing was changed"
        )


def remove(folder: Path) -> None:
    """Take a stage's folder out of sight in one go, then remove it, so that none is ever half removed."""
    hidden = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    folder.rename(hidden)
    shutil.rmtree(hidden)


def _change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first key that differs, with both values."""
    for key in [*now, *(key for key in before if key not in now)]:
        was, is_now = (json.dumps(side[key]) if key in side else "nothing" for side in (before, now))
        if was != is_now:
            return f"{key} {was}, which is {is_now} now"
    return None
