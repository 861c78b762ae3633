"""A program on several ranks, cores shared out among them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
PATIENCE = 600.0
"""Seconds after which a program is ended."""


def launch(
    module: str, arguments: Sequence[str], *, ranks: int, folder: Path, threads: int | None = None
) -> None:
    """Run it to its end in ``folder``; ``threads`` of each rank are its share of ours where not given.

    Raises:
        RuntimeError: it failed; its last words.
    """
    threads = threads or max(torch.get_num_threads() // ranks, 1)
    settings = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", module, *arguments],
        cwd=folder,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"{module} failed"])[-1])
