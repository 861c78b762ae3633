"""Runs a function of a test file on two ranks and returns what each of them returned."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], list[Any]]:
    def run(file: str, function: str) -> list[Any]:
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
