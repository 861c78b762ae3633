"""``python -m tests.nodes``, and that a missing hostfile is named."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_lost_node_ends_the_other_and_the_run_goes_on_without_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.nodes"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_missing_hostfile_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "launch" / "multi_node.sh"), "sft"],
        env=os.environ | {"HOSTFILE": str(tmp_path / "hosts")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.strip() == (
        f"launch/multi_node.sh: {tmp_path / 'hosts'} does not exist; "
        "HOSTFILE must name a file of lines 'NAME slots=GPUS'"
    )
