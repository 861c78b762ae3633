"""``rlhf COMMAND …`` twice in one process, small and as it is: what the second held of tensors and of memory.

    python -m benchmarks.memory.worker FILE

FILE names a JSON object with ``command``, ``small`` and ``full``; beside it each rank leaves
``held_RANK.json``. The first run loads the libraries and starts what stays: threads, caches, DeepSpeed.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
from pathlib import Path

import torch

from benchmarks.measure import held, most_since
from rlhf.cli.application import run
from rlhf.planning.held import Held


class All(Held):
    """Counts what was read from a file too: no operation makes it."""

    def found(self, storage: torch.UntypedStorage) -> int:
        """What it holds."""
        return storage.nbytes()

    def _see(self, storage: torch.UntypedStorage, size: int) -> None:
        """DeepSpeed makes shapes on the meta device, which hold nothing."""
        Held._see(self, storage, 0 if storage.device.type == "meta" else size)


def main(file: Path) -> int:
    """Both runs; the status of the first that fails."""
    asked = json.loads(file.read_text(encoding="utf-8"))
    command = importlib.import_module(f"rlhf.cli.{asked['command']}").COMMAND
    status = run(asked["command"], command, asked["small"])
    if status:
        return status
    gc.collect()
    before = held(torch.device("cpu"))
    with All() as counted:
        status = run(asked["command"], command, asked["full"])
    found = {
        "tensors": counted.peak,
        "resident": None if before is None else most_since(before, torch.device("cpu")),
    }
    rank = os.environ.get("RANK", "0")
    file.with_name(f"held_{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
