"""The toy runs, and a way to run a function of a test file on two ranks."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

LAUNCHER = Path(__file__).parents[1] / "distributed" / "two_ranks.py"
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("toy.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], list[Any]]:
    def run(file: str, function: str) -> list[Any]:
        folder = tmp_path_factory.mktemp(function)
        env = {name: value for name, value in os.environ.items() if name not in PLACE}
        done = subprocess.run(
            [sys.executable, str(LAUNCHER), file, function, str(folder)],
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]

    return run
