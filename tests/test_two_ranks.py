"""What starts the ranks of other tests says how they ended."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import two_ranks


def work(_folder: Path) -> int:
    return 7


def fail(_folder: Path) -> None:
    raise ValueError("no")


@pytest.mark.parametrize(("function", "status"), [("work", 0), ("fail", 1)])
@pytest.mark.parametrize("ranks", ["1", "2"])
def test_the_status_is_that_of_the_ranks(tmp_path: Path, function: str, status: int, ranks: str) -> None:
    command = [sys.executable, two_ranks.__file__, __file__, function, str(tmp_path), ranks]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == status, done.stderr
    assert len(list(tmp_path.glob("rank*.pt"))) == (0 if status else int(ranks))
