"""``rlhf recipe``: what it would run, what it refuses, and that nothing keeps it from its end."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.core.global_hydra import GlobalHydra
from matplotlib.figure import Figure
from safetensors.torch import load_file

from rlhf.cli import application
from rlhf.cli.main import COMMANDS
from rlhf.cli.recipe import alone_in
from rlhf.distributed import checkpoints
from rlhf.recipes import process

SHIPPED = sorted(file.stem for file in (Path(__file__).parents[2] / "conf" / "recipe").glob("*.yaml"))
LAST = "round_2/sft"
STAGES = [f"round_{number}/{name}" for number in (1, 2) for name in ("generate", "select", "sft")]


class Killed(BaseException):
    """Nothing of ours may catch it."""


@pytest.fixture
def iteration(workspace: Any) -> list[str]:
    """Two rounds of expert iteration with the tiny models."""
    return [
        "recipe=expert_iteration",
        "name=ei",
        "rounds=2",
        f"start.sft={workspace.sft}",
        f"settings.reward={workspace.reward}",
        f"settings.prompts={workspace.prompts}",
        "settings.best_of=2",
        "settings.max_new_tokens=4",
        "settings.engine=plain",
        "settings.batch_size=2",
        "settings.epochs=2",
        '+extra.select=["keep_cut=true"]',
        '+extra.sft=["cadence.checkpoint_every=1"]',
    ]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# What would be run


def commands(out: str) -> list[list[str]]:
    """The words of each command that a dry run printed."""
    return [shlex.split(line) for line in out.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_a_list_of_commands_that_compose(rlhf: Any, name: str) -> None:
    outcome = rlhf("recipe", f"recipe={name}", "dry_run=true")
    assert outcome.status == 0, outcome.err
    printed = commands(outcome.out)
    assert len(printed) >= 2
    for program, command, given, *overrides in printed:
        assert program == "rlhf"
        assert given.startswith(f"name={name}/")
        assert command in COMMANDS
        assert "{" not in " ".join(overrides).replace("<quantile_{}>", "")


def test_the_page_lists_every_shipped_recipe() -> None:
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    section = page.partition("## The recipes\n")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `(\w+)` ", section, re.MULTILINE)) == sorted({*SHIPPED, "recipe"})


def test_a_printed_command_can_be_copied(rlhf: Any) -> None:
    outcome = rlhf("recipe", "recipe=conditioning", "dry_run=true")
    for _, *words in commands(outcome.out):
        composed = rlhf(*words, "--cfg", "job")
        assert composed.status == 0, composed.err
    assert yaml.safe_load(composed.out)["prefix"] == "<good> "


def test_iterated_rlhf_keeps_its_reference_and_learns_the_labels_of_all_rounds(rlhf: Any) -> None:
    outcome = rlhf("recipe", "recipe=iterative_rlhf", "start.rl=runs/sft", "rounds=2", "dry_run=true")
    words = {given.removeprefix("name=iterative_rlhf/"): rest for _, _, given, *rest in commands(outcome.out)}
    files = [f"runs/iterative_rlhf/round_{number}/generate/responses.jsonl" for number in (1, 2)]
    assert f"input=[{','.join(files)}]" in words["round_2/label"]
    assert "model.path=runs/sft" in words["round_2/reward"]
    assert "data.path=runs/iterative_rlhf/round_2/label/selected.jsonl" in words["round_2/reward"]
    assert "actor.model.path=runs/iterative_rlhf/round_1/rl" in words["round_2/rl"]
    assert "reference=runs/sft" in words["round_2/rl"]
    assert "reward.path=runs/iterative_rlhf/round_2/reward" in words["round_2/rl"]


def test_a_dry_run_says_how_far_every_stage_is_and_runs_none(
    rlhf: Any, iteration: list[str], tmp_path: Path
) -> None:
    outcome = rlhf("recipe", *iteration, "dry_run=true")
    told = [line for line in outcome.out.splitlines() if line.startswith("#")]
    assert told == [f"# {label}, to be run" for label in STAGES]
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


def test_a_launcher_starts_the_stages_that_train_and_no_other(rlhf: Any, iteration: list[str]) -> None:
    outcome = rlhf("recipe", *iteration, "dry_run=true", f"launcher='{sys.executable} -m rlhf'")
    assert outcome.status == 0, outcome.err
    starts = [line.partition(" name=")[0] for line in outcome.out.splitlines() if not line.startswith("#")]
    assert starts == ["rlhf generate", "rlhf select", f"{sys.executable} -m rlhf sft"] * 2


def test_help_names_the_recipes_and_explains_the_keys(rlhf: Any) -> None:
    outcome = rlhf("recipe", "--help")
    assert outcome.status == 0, outcome.err
    assert f"recipe={'|'.join(SHIPPED)}" in outcome.out
    assert "# How often each_round is run." in outcome.out


# What is refused


@pytest.fixture
def own(rlhf: Any, tmp_path: Path) -> Callable[..., Any]:
    """Run a recipe of one's own, from a folder of one's own."""

    def run(text: str, *arguments: str) -> Any:
        file = tmp_path / "mine" / "recipe" / "mine.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# @package _global_\nname: mine\n{text}")
        return rlhf("recipe", "--config-dir", str(tmp_path / "mine"), "recipe=mine", *arguments)

    return run


GOOD = "first: {a: {command: sft, overrides: [data.path=x]}}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "first: {a: {command: stf}}",
            "stage a: there is no command 'stf' for a stage; did you mean sft?",
        ),
        (
            "first: {a: {command: recipe}}",
            "stage a: there is no command 'recipe' for a stage; ",
        ),
        ("first: {a: {overrides: []}}", "these have no value yet: first.a.command; give each as KEY=VALUE"),
        ("first: {a: {comand: sft}}", "comand"),
        ("firsts: {a: {command: sft}}", "firsts"),
        (
            "first: {a: {command: sft, overrides: [optimizer.lrr=1]}}",
            "stage a: unknown key optimizer.lrr; did you mean optimizer.lr?",
        ),
        (
            "first: {a: {command: sft, overrides: [optimizer.lr=-1]}}",
            "stage a: AdamW.lr must be positive, got -1.0",
        ),
        (
            "first: {a: {command: score, overrides: [data.path=x]}}",
            "stage a: these have no value yet: reward.path; give each as KEY=VALUE",
        ),
        (
            "first: {a: {command: sft, overrides: [optimizer.lr]}}",
            "stage a: 'optimizer.lr' is not KEY=VALUE: ",
        ),
        (
            "each_round: {a: {command: sft, overrides: ['data.path={stages.b}']}, b: {command: sft}}",
            "stage round_1/a: {stages.b} comes later; a stage reads what ran before it",
        ),
        (
            "first: {a: {command: sft, overrides: ['data.path={settings.data}']}}",
            "stage a: there is no {settings.data}; there are none",
        ),
    ],
)
def test_a_recipe_that_is_wrong_ends_in_one_line_before_anything_runs(
    own: Any, tmp_path: Path, text: str, message: str
) -> None:
    outcome = own(text)
    assert outcome.status == 1
    (line,) = outcome.err.splitlines()
    assert line.startswith("rlhf recipe: ")
    assert message in line
    assert outcome.out == ""
    assert not list(tmp_path.glob("runs/mine/*"))


def test_an_unknown_recipe_is_refused_with_the_nearest(rlhf: Any) -> None:
    outcome = rlhf("recipe", "recipe=expert_iterations")
    assert outcome.status == 1
    (line,) = outcome.err.splitlines()
    assert "recipe has no option 'expert_iterations'; did you mean expert_iteration?" in line


def test_a_launcher_that_is_not_there_is_refused(own: Any) -> None:
    outcome = own(GOOD, "launcher='deepsped --module rlhf'")
    assert outcome.status == 1
    assert outcome.err == (
        "rlhf recipe: launcher must begin with a program, got 'deepsped', which is not found\n"
    )


def test_a_folder_of_something_else_is_in_the_way(own: Any, tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine" / "a" / "model").mkdir(parents=True)
    outcome = own(GOOD)
    assert outcome.status == 1
    assert outcome.err == "rlhf recipe: runs/mine/a is in the way: no stage of this recipe has made it\n"


# Running, with each stage in this process: a start of its own takes seconds


@dataclass
class Stages:
    """What was started, and where the recipe dies: ``before LABEL`` or ``after LABEL``."""

    started: list[str] = field(default_factory=list)
    killed: str = ""

    def run(self, words: Sequence[str], *, label: str, **_: Any) -> None:
        """In place of ``process.run``."""
        if self.killed == f"before {label}":
            raise Killed
        self.started.append(label)
        with outside_of_hydra():
            command = importlib.import_module(f"rlhf.cli.{words[3]}").COMMAND
            status = application.run(words[3], command, list(words[4:]))
        if status:
            raise process.StageEnded(f"stage {label} ended with status {status}", status)
        if self.killed == f"after {label}":
            raise Killed


@contextlib.contextmanager
def outside_of_hydra() -> Iterator[None]:
    """As in a process that Hydra has not been started in."""
    of_the_recipe = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = of_the_recipe


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    """Each stage runs in this process."""
    made = Stages()
    monkeypatch.setattr(process, "run", made.run)
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)  # most of a run's time
    return made


@pytest.fixture
def go(rlhf: Any, iteration: list[str]) -> Callable[..., Any]:
    """Start the two rounds of expert iteration, or go on with them."""
    return lambda *more: rlhf("recipe", *iteration, *more)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of a recipe are kept that nothing stopped, once there are any."""
    return tmp_path_factory.mktemp("unbroken") / "runs"


@pytest.fixture
def reference(unbroken: Path, go: Any, stages: Stages, tmp_path: Path) -> Path:
    """The run folder of an unbroken recipe's last stage."""
    if not unbroken.exists():
        outcome = go()
        assert outcome.status == 0, outcome.err
        assert stages.started == STAGES
        shutil.move(tmp_path / "runs", unbroken)
        stages.started.clear()
    return unbroken / "ei" / LAST


@pytest.fixture
def finished(reference: Path, unbroken: Path, tmp_path: Path) -> Path:
    """The unbroken recipe's folder, here."""
    assert reference.is_dir()
    shutil.copytree(unbroken, tmp_path / "runs")
    return tmp_path / "runs" / "ei"


def stop_at(folder: Path, label: str) -> None:
    """The finished recipe as it was when the stage had ended and nobody had noted it."""
    for later in STAGES[STAGES.index(label) + 1 :]:
        shutil.rmtree(folder / later)
    told = json.loads((folder / label / "stage.json").read_text())
    assert told["finished"]
    (folder / label / "stage.json").write_text(json.dumps(told | {"finished": False}))


def test_a_recipe_trains_in_every_round(reference: Path, workspace: Any) -> None:
    first = reference.parents[1] / "round_1" / "sft"
    assert not same(workspace.sft, first)
    assert not same(first, reference)


def test_a_finished_recipe_runs_nothing_again(finished: Path, go: Any, stages: Stages) -> None:
    outcome = go()
    assert outcome.status == 0, outcome.err
    assert stages.started == []
    assert outcome.out.count(": finished\n") == len(STAGES)
    told = go("dry_run=true").out.splitlines()[::2]
    assert told == [f"# {label}, finished" for label in STAGES]


def test_a_recipe_killed_at_every_boundary_ends_bit_for_bit_where_it_would_have(
    reference: Path, go: Any, stages: Stages, tmp_path: Path
) -> None:
    for label in STAGES:
        stages.killed = f"before {label}"
        with pytest.raises(Killed):
            go()
    stages.killed = ""
    assert go().status == 0
    assert stages.started == STAGES  # each once
    assert same(tmp_path / "runs" / "ei" / LAST, reference)


@pytest.mark.parametrize("label", STAGES[3:])
def test_a_stage_whose_recipe_died_before_noting_its_end_is_run_again_to_the_same_end(
    reference: Path, finished: Path, go: Any, stages: Stages, label: str
) -> None:
    stop_at(finished, label)
    assert go().status == 0
    assert stages.started == STAGES[STAGES.index(label) :]
    assert same(finished / LAST, reference)


def test_a_stage_killed_in_its_middle_goes_on_from_its_checkpoint(
    reference: Path, finished: Path, go: Any, stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoints.write

    def killing(folder: Path, step: int, *arguments: Any, **options: Any) -> Path:
        path = write(folder, step, *arguments, **options)
        if step == 2:
            raise Killed
        return path

    shutil.rmtree(finished / LAST)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write", killing)
        with pytest.raises(Killed):
            go()
    outcome = go()
    assert outcome.status == 0, outcome.err
    assert stages.started == [LAST, LAST]
    assert f"continuing from {finished / LAST / 'checkpoints' / 'step_000002'}" in outcome.err
    assert [json.loads(line)["step"] for line in (finished / LAST / "metrics.jsonl").open()] == [1, 2, 3]
    assert same(finished / LAST, reference)


def test_a_stage_killed_before_its_first_checkpoint_starts_again(
    reference: Path, finished: Path, go: Any, stages: Stages
) -> None:
    stop_at(finished, LAST)
    shutil.rmtree(finished / LAST / "checkpoints")
    assert go().status == 0
    assert stages.started == [LAST]
    assert same(finished / LAST, reference)


def test_a_generation_killed_in_its_middle_keeps_what_it_has(
    reference: Path, finished: Path, go: Any
) -> None:
    stop_at(finished, "round_2/generate")
    file = finished / "round_2" / "generate" / "responses.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    outcome = go()
    assert outcome.status == 0, outcome.err
    (told,) = [line for line in outcome.out.splitlines() if "resume=true" in line]
    assert "generate name=ei/round_2/generate" in told
    assert file.read_bytes() == whole
    assert same(finished / LAST, reference)


def test_a_stage_that_fails_ends_the_recipe_which_goes_on_once_that_is_mended(
    go: Any, stages: Stages, workspace: Any, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    mine = (f"settings.prompts={prompts}", "rounds=1")
    outcome = go(*mine)
    assert outcome.status == 1
    assert outcome.err.endswith("rlhf recipe: stage round_1/generate ended with status 1\n")
    shutil.copy(workspace.prompts, prompts)
    assert go(*mine).status == 0
    assert stages.started == ["round_1/generate", *STAGES[:3]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "settings.lr=1e-3",
            "runs/ei/round_1/sft has been run with optimizer.lr 0.0005, which is 0.001 now: choose another "
            "name=…, or remove it and the stages after it to run them again; nothing was changed",
        ),
        ("seed=1", "runs/ei/round_1/generate has been run with seed 1, which is 1001 now: "),
    ],
)
def test_a_changed_setting_of_a_finished_stage_is_refused(
    finished: Path, go: Any, stages: Stages, change: str, message: str
) -> None:
    outcome = go(change)
    assert outcome.status == 1
    assert outcome.err.startswith(f"rlhf recipe: {message}")
    assert outcome.err.count("\n") == 1
    assert stages.started == []
    assert finished.is_dir()


def test_a_changed_setting_of_a_stage_that_was_begun_is_refused(finished: Path, go: Any) -> None:
    stop_at(finished, "round_1/sft")
    outcome = go("settings.epochs=3")
    assert "runs/ei/round_1/sft has been begun with epochs 2.0, which is 3.0 now: " in outcome.err


def test_a_stage_after_a_changed_one_is_refused_until_it_is_removed_too(
    finished: Path, go: Any, stages: Stages
) -> None:
    changed = '++extra.sft=["cadence.checkpoint_every=1","optimizer.eps=1e-7"]'
    shutil.rmtree(finished / "round_1" / "sft")
    shutil.rmtree(finished / "round_2" / "sft")
    outcome = go(changed)
    assert "runs/ei/round_2/generate has been run after stages with other settings: " in outcome.err
    shutil.rmtree(finished / "round_2")
    assert go(changed).status == 0
    assert stages.started == STAGES[2:]


def test_a_setting_that_changes_no_result_may_change(finished: Path, go: Any, stages: Stages) -> None:
    assert go('++extra.sft=["cadence.checkpoint_every=1","micro_batch_size=1"]').status == 0
    assert stages.started == []
    assert finished.is_dir()


def test_further_rounds_follow_those_that_are_finished(finished: Path, go: Any, stages: Stages) -> None:
    assert go("rounds=3").status == 0
    assert stages.started == ["round_3/generate", "round_3/select", "round_3/sft"]
    assert (finished / "round_3" / "sft" / "model").is_dir()


def test_a_folder_at_work_is_refused(finished: Path, go: Any) -> None:
    with alone_in(finished):
        outcome = go()
    assert outcome.status == 1
    said = f"{finished} is at work: another rlhf recipe runs there, or a stage of one that was killed"
    assert outcome.err == f"rlhf recipe: {said}\n"
    assert go().status == 0


# Running, with a process for each stage


class Started:
    """``rlhf recipe`` as a user starts it."""

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rlhf", "recipe", *arguments],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, event: Callable[[], bool]) -> None:
        while not event():
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.01)

    def end(self) -> tuple[int, str]:
        out, _ = self.process.communicate(timeout=150)
        return self.process.returncode, out


@pytest.mark.slow
def test_a_recipe_interrupted_and_killed_inside_its_stages_ends_where_it_would_have(
    rlhf: Any, iteration: list[str], tmp_path: Path
) -> None:
    """The first SFT is interrupted, the second survives its recipe, and nothing is lost or done twice."""
    longer = [*iteration, "settings.epochs=100"]

    def under_way(stage: str) -> Callable[[], bool]:
        return lambda: any((tmp_path / "runs" / "ei" / stage / "checkpoints").glob("step_*"))

    interrupted = Started(tmp_path, longer)
    interrupted.wait_for(under_way("round_1/sft"))
    os.kill(interrupted.process.pid, signal.SIGINT)
    status, out = interrupted.end()
    assert status == 130, out
    stopped = "rlhf recipe: stopped by SIGINT at round_1/sft; the same command goes on there"
    assert out.splitlines()[-1] == stopped
    assert "[round_1/sft] rlhf sft: stopped by SIGINT; continue with resume=true" in out
    killed = Started(tmp_path, longer)
    killed.wait_for(under_way(LAST))
    killed.process.kill()
    killed.process.wait()
    while "is at work" in (ended := Started(tmp_path, longer).end())[1]:
        time.sleep(0.1)
    status, out = ended
    assert status == 0, out
    assert out.count(": finished\n") == 5
    assert "[round_2/sft] continuing from" in out
    again = ["recipe", *longer, "name=whole"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "run", Stages().run)
        assert rlhf(*again).status == 0
    assert same(tmp_path / "runs" / "ei" / LAST, tmp_path / "runs" / "whole" / LAST)
