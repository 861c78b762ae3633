"""``python -m tests.kills``: what it does to a run, and what it would notice."""

import copy
import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.kills import __main__ as command
from tests.kills import runs

PARENT = """
import subprocess, sys, time
child = "import time; print('up', flush=True); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", child])
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--kills", "5"], ["--kills", "2", "--ranks", "2"]])
def test_a_killed_run_ends_bitwise_where_an_undisturbed_one_does(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == 0, capsys.readouterr().out


def test_kills_are_spread_evenly_over_the_run() -> None:
    kills = command.plan(20, 40, seed=3)
    assert sorted(kill.after for kill in kills) == [kill.after for kill in kills]
    assert all(number * 1.95 - 1 < kill.after < (number + 1) * 1.95 for number, kill in enumerate(kills))
    moments = [kill.moment for kill in kills]
    assert [moments.count(name) for name in ("start", "checkpoint", "rollout")] == [4, 4, 12]
    assert all(0 <= kill.share < 1 for kill in kills)


def test_a_kill_ends_every_process_of_the_run(tmp_path: Path) -> None:
    life = runs.Life(tmp_path, tmp_path / "run", [sys.executable, "-c", PARENT])
    while "up" not in life.log.read_text():
        time.sleep(0.01)
    assert runs.alive(life.process.pid)
    assert life.kill()
    assert not runs.alive(life.process.pid)


def test_a_life_that_ended_by_itself_was_not_killed(tmp_path: Path) -> None:
    life = runs.Life(tmp_path, tmp_path / "run", [sys.executable, "-c", ""])
    assert not life.wait(lambda: False)
    assert not life.kill()
    life.finish()


def test_a_life_that_failed_is_no_end(tmp_path: Path) -> None:
    life = runs.Life(tmp_path, tmp_path / "run", [sys.executable, "-c", "raise SystemExit('why')"])
    with pytest.raises(RuntimeError, match="why"):
        life.finish()


def test_one_unit_in_the_last_place_of_one_weight_is_seen() -> None:
    left = {"state": [{"moment": torch.ones(3)}, (1, "name")], "step": 7}
    other = copy.deepcopy(left)
    assert runs.same(left, other)
    other["state"][0]["moment"][1] = math.nextafter(1, 2) + 2**-23  # the float32 after 1
    assert not runs.same(left, other)
    assert not runs.same(left, {"state": left["state"]})
    assert not runs.same(left, left | {"step": 8})
    assert not runs.same(torch.ones(3), torch.ones(3).double())


def test_objects_are_the_same_when_what_they_hold_is() -> None:
    assert runs.same({"scale": SimpleNamespace(now=1.0)}, {"scale": SimpleNamespace(now=1.0)})
    assert not runs.same(SimpleNamespace(now=1.0), SimpleNamespace(now=2.0))
    assert not runs.same(SimpleNamespace(now=torch.ones(1)), SimpleNamespace(now=torch.zeros(1)))
