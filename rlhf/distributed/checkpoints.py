"""Checkpoints that are whole or not there: written under another name, synced, then renamed.

checkpoints/step_000120/manifest.json    size and sha256 of every file
checkpoints/step_000120/…                what the run saves
checkpoints/.step_000140.partial/        a write that was killed; removed by the next one
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from rlhf.distributed.collectives import on_every_rank, on_main, world_size

MANIFEST = "manifest.json"
logger = logging.getLogger(__name__)


def write(folder: Path, step: int, save: Callable[[Path], None], *, keep: int) -> Path:
    """Write checkpoint ``folder/step_000120``; every rank calls it and leaves together.

    Args:
        folder: the run's checkpoints, on a file system that all ranks share.
        step: its number.
        save: writes everything into the folder it is given; called on every rank.
        keep: how many of the newest checkpoints stay, this one included; older ones go after the rename.

    Returns:
        The checkpoint's folder.

    Raises:
        Exception: what ``save`` raised, on every rank even if it failed on one. Nothing has been renamed.
    """
    if keep < 1:
        raise ValueError(f"checkpoints.write: keep must be at least 1, got {keep}")
    final = folder / f"step_{step:06d}"
    partial = folder / f".{final.name}.partial"
    on_main(lambda: _prepare(folder, partial))
    on_every_rank(lambda: save(partial))
    on_main(lambda: _publish(partial, final, step, keep))
    return final


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint in the folder, or None when there is none at all; every rank calls it.

    A checkpoint is torn when its manifest or a file is missing, or a size or sha256 differs. Torn ones are
    passed over for an older whole one, which one logged line says.

    Raises:
        ValueError: there are checkpoints and none is whole.
    """
    return on_main(lambda: _newest_whole(folder))


def _prepare(folder: Path, partial: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".step_*"):
        shutil.rmtree(leftover)
    partial.mkdir()


def _publish(partial: Path, final: Path, step: int, keep: int) -> None:
    """Sync the files, name them in the manifest, rename; then remove what is too old."""
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    manifest = {
        "step": step,
        "world_size": world_size(),
        "files": {path.relative_to(partial).as_posix(): _fingerprint(path) for path in files},
    }
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    for path in [*partial.rglob("*"), partial]:
        _sync(path)
    if final.exists():
        _remove(final)
    partial.rename(final)
    _sync(final.parent)
    older = [path for number, path in _checkpoints(final.parent) if number < step]
    for path in older[keep - 1 :]:
        _remove(path)


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """The folder's checkpoints, the newest first."""
    found = [(re.fullmatch(r"step_(\d+)", path.name), path) for path in folder.glob("step_*")]
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def _newest_whole(folder: Path) -> Path | None:
    faults: list[str] = []
    for _, path in _checkpoints(folder):
        fault = _fault(path)
        if fault is None:
            if faults:
                logger.warning("torn checkpoint (%s): continuing from %s", faults[0], path)
            return path
        faults.append(fault)
    if faults:
        raise ValueError(f"no whole checkpoint in {folder}: {faults[0]}")
    return None


def _fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file; None when it is whole."""
    manifest = checkpoint / MANIFEST
    if not manifest.is_file():
        return f"{manifest} is missing"
    try:
        files = json.loads(manifest.read_text())["files"]
    except (ValueError, KeyError):
        return f"{manifest} is not a manifest"
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{path} has {path.stat().st_size} bytes, expected {expected['bytes']}"
        if _fingerprint(path) != expected:
            return f"{path} differs from its sha256"
    return None


def _fingerprint(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _sync(path: Path) -> None:
    """Force a file or a folder's entries onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(checkpoint: Path) -> None:
    """Take it out of sight in one go, so that no half-removed checkpoint is ever looked at."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.removed")
    checkpoint.rename(hidden)
    shutil.rmtree(hidden)
