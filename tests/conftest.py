"""One thread for every test, and a way to run a function of a test file on two ranks.

On two cores one thread is some twenty times faster than torch's default.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)

PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], list[dict[str, Any]]]:
    """``two_ranks(__file__, "work")`` is what ``work(folder)`` returned on each of two gloo ranks."""

    def run(file: str, function: str) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp(function)
        command = [sys.executable, str(Path(__file__).with_name("two_ranks.py")), file, function, str(folder)]
        env = {name: value for name, value in os.environ.items() if name not in PLACE}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        results = [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]
        for result in results:
            result["output"] = done.stdout + done.stderr
            result["folder"] = folder
        return results

    return run
