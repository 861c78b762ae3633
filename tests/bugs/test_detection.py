"""Tests that cannot fail: the mistakes of numerics 3.2 turn the tests that name them red."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.detection.breaking import Edit
from tests.detection.mutations import MUTATIONS

ROOT = Path(__file__).parents[2]
SOME = ["γ = 0.9"]


@pytest.mark.parametrize(
    "names", [SOME, pytest.param([], marks=pytest.mark.slow)], ids=["some", "every, with training"]
)
def test_listed_mutations_turn_the_suite_red(names: list[str]) -> None:
    """In processes of their own: each imports a product that has been broken."""
    training = ["--no-training"] if names else []
    done = subprocess.run(
        [sys.executable, "-m", "tests.detection", *training, *names],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    header, line, none, *rows = done.stdout.splitlines()
    assert len(rows) == len(names or MUTATIONS), (header, line, none)
    assert all("test_" in row for row in rows)


@pytest.mark.parametrize(
    "edit", [pytest.param(edit, id=mutation.name) for mutation in MUTATIONS for edit in mutation.edits]
)
def test_every_listed_mutation_has_its_place_in_the_source(edit: Edit) -> None:
    spec = find_spec(edit.module)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    assert source.count(edit.right) == 1
    assert edit.wrong != edit.right
