"""A trainer's own numbers in a checkpoint: counters, positions, the KL coefficient."""

from __future__ import annotations

import json
from pathlib import Path

from rlhf.distributed.collectives import is_main


def save_progress(folder: Path, values: dict[str, float]) -> None:
    """Write ``trainer.json``; the numbers are the same on every rank, so rank 0 writes them."""
    if is_main():
        (folder / "trainer.json").write_text(json.dumps(values), encoding="utf-8")


def load_progress(folder: Path, names: set[str]) -> dict[str, float]:
    """Read ``trainer.json`` and insist on exactly ``names``.

    Raises:
        ValueError: the checkpoint belongs to another stage.
    """
    values: dict[str, float] = json.loads((folder / "trainer.json").read_text(encoding="utf-8"))
    if set(values) != names:
        raise ValueError(f"{folder} holds {sorted(values)}, but this stage continues from {sorted(names)}")
    return values
