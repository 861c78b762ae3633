"""Bugs of other frameworks in configuration, launching, and the tests themselves."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlhf import config
from rlhf.cli.application import Command, Place
from rlhf.cli.composition import choices, compose, keys
from rlhf.cli.main import COMMANDS
from rlhf.config.training import NormaliseConfig
from rlhf.distributed import runtime
from rlhf.trainers.normalisation import Normalisation

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
PRESETS = sorted(file.relative_to(CONF).with_suffix("").as_posix() for file in CONF.rglob("*/*.yaml"))
MODULES = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for file in (ROOT / "rlhf").rglob("*.py")
)
JOBS: dict[str, Command] = {name: importlib.import_module(f"rlhf.cli.{name}").COMMAND for name in COMMANDS}
config.register({name: command.schema for name, command in JOBS.items()})

TINY = (
    "model=tiny_llama",
    "model.layers=1",
    "model.hidden=16",
    "model.heads=2",
    "model.intermediate=16",
    "tokenizer.vocab_size=300",
    "engine=plain",
    "batch_size=4",
    "micro_batch_size=4",
)


# Configuration


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_composes(preset: str) -> None:
    group, _, option = preset.rpartition("/")
    if group.startswith("experiment"):
        composed = compose(option, [f"experiment={preset.removeprefix('experiment/')}"])
    else:
        command = next(name for name in JOBS if group in choices(name))
        composed = compose(command, [f"{group}={option}"])
    assert keys(composed)


@pytest.mark.parametrize("name", JOBS)
def test_every_entry_point_composes_with_defaults(name: str) -> None:
    missing = OmegaConf.missing_keys(compose(name))
    assert all(key.endswith("path") for key in missing)  # ??? marks what only the user can know


@pytest.mark.parametrize("name", JOBS)
def test_unknown_field_is_refused(name: str) -> None:
    for override in ("noptepochs=1", "seeed=1"):
        with pytest.raises((HydraException, OmegaConfBaseException)):
            compose(name, [override])
    raw = compose(name, ["+noptepochs=1"])  # which Hydra accepts
    with pytest.raises(ValueError, match="unknown key noptepochs"):
        config.build(raw, JOBS[name].schema)
    made = config.build(filled(compose(name)), JOBS[name].schema)
    for component in components(made):
        with pytest.raises(AttributeError):
            component.noptepochs = 1


def filled(raw: Any) -> Any:
    for key in OmegaConf.missing_keys(raw):
        OmegaConf.update(raw, key, "somewhere")
    return raw


def components(component: Any) -> Iterator[Any]:
    yield component
    for name in component.__dataclass_fields__:
        if is_dataclass(inner := getattr(component, name)):
            yield from components(inner)


def test_config_is_unchanged_by_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    data = demonstrations(tmp_path / "rows.jsonl")
    run(tmp_path / "sft", "sft", *TINY, f"data.path={data}", "name=sft")
    tiny_rl = [
        f"actor.model.path={tmp_path / 'sft'}",
        "reward=function",
        "reward.function=constant_reward:one",
        f"prompts.path={data}",
        "engine=plain",
        "micro_batch_size=4",
        "rollout.prompts=4",
        "rollout.sampling.max_new_tokens=2",
        "rollouts=2",
        "algorithm/kl=in_reward_adaptive",
    ]
    (tmp_path / "constant_reward.py").write_text(
        "def one(prompts, responses, columns):\n    return [1.0] * len(prompts)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    run(tmp_path / "rl", "rl", *tiny_rl, "name=rl")


def run(folder: Path, name: str, *overrides: str) -> None:
    """Run the job itself and compare its configuration before and after."""
    raw = compose(name, overrides)
    resolved = OmegaConf.to_yaml(raw, resolve=True)
    made = config.build(raw, JOBS[name].schema)
    before = asdict(made)
    place = Place(runtime=runtime.start(timeout=timedelta(minutes=1)), folder=folder, resolved=resolved)
    try:
        JOBS[name].job(made, place)
    finally:
        runtime.stop()
    assert asdict(made) == before
    assert (folder / "config.yaml").read_text() == resolved == OmegaConf.to_yaml(raw, resolve=True)


def demonstrations(file: Path) -> Path:
    rows = [{"prompt": "the film", "response": " is good"}, {"prompt": "a dull", "response": " story"}] * 2
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_all_ranks_share_one_run_directory(tmp_path: Path) -> None:
    """Two real ranks; no folder may be named by a clock, which each rank reads for itself."""
    data = demonstrations(tmp_path / "rows.jsonl")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "rlhf", "sft", *TINY, f"data.path={data}", "name=shared/run"]
    ranks = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_SIZE": "2"}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        environment = os.environ | place | address
        ranks.append(
            subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
        )
    complaints = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], complaints
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["shared"]
    assert [path.name for path in (tmp_path / "runs" / "shared").iterdir()] == ["run"]
    assert (tmp_path / "runs" / "shared" / "run" / "model" / "config.json").is_file()
    assert len((tmp_path / "runs" / "shared" / "run" / "metrics.jsonl").read_text().splitlines()) == 1
    for file in (CONF / "launch.yaml", *CONF.glob("*.yaml")):
        assert "${now:" not in file.read_text()


HYPERPARAMETERS = {
    "algorithm.kl.coef": 0.123,
    "algorithm.policy_loss.clip_low": 0.123,
    "algorithm.policy_loss.clip_high": 0.323,
    "algorithm.advantage.gamma": 0.923,
    "algorithm.advantage.lam": 0.823,
    "algorithm.advantage.whiten": False,
    "algorithm.value_loss.clip": 0.123,
    "algorithm.missing_eos_score": -3.5,
    "algorithm.epochs": 3,
    "algorithm.minibatches": 2,
    "rollout.prompts": 24,
    "rollout.samples": 3,
    "rollout.sampling.temperature": 0.7,
    "rollout.sampling.max_new_tokens": 7,
    "actor.optimizer.lr": 0.0123,
    "actor.optimizer.beta1": 0.8,
    "actor.optimizer.beta2": 0.97,
    "actor.optimizer.eps": 1e-6,
    "actor.optimizer.weight_decay": 0.3,
    "critic.optimizer.lr": 0.0321,
    "engine.clip": 0.5,
    "schedule.warmup": 0.2,
    "rollouts": 3,
    "seed": 5,
}
FIXED = {
    (
        "algorithms/kl.py",
        0.2,
    ): "the adaptive coefficient's error is clipped to ±0.2 (Ziegler et al. 2019, section 2.2)",
    ("algorithms/policy_losses.py", 1.5): "the adaptive penalty's band (Schulman et al. 2017, section 4)",
    ("algorithms/preference_losses.py", 0.5): "labels that are wrong half of the time say nothing",
    ("ops/kl.py", 0.5): "the half of k2",
    ("rollout/memory.py", 0.8): "when copying live rows pays; no token depends on it",
    ("rollout/contract.py", 1e-5): "float32's rounding of a log-prob of 0",
    ("ops/preference_losses.py", 1e-6): "log(1 - p) is finite where float32 cannot tell p from 1",
    ("ops/value_losses.py", 0.5): "the half of a squared error",
    ("ops/ranking_losses.py", 0.5): "a label of 1/2 is a tie",
    ("ops/masking.py", 1e-8): "keeps whitening finite where every value is the same",
    ("ops/masking.py", 1e-13): "a variance that is rounding error is 0",
    (
        "rewards/sandbox.py",
        60.0,
    ): "seconds of silence after which the sandbox has failed; no score depends on it",
    (
        "rewards/sandbox_trial.py",
        0.5,
    ): "seconds that a program gets to end by itself once it no longer answers",
}


def test_every_hyperparameter_is_in_the_config() -> None:
    made: Any = config.build(
        compose("rl", [f"{key}={value}" for key, value in HYPERPARAMETERS.items()]), config.RL
    )
    for key, value in HYPERPARAMETERS.items():
        component = made
        for name in key.split("."):
            component = getattr(component, name)
        assert component == value, key
    adaptive = set(keys(compose("rl", ["algorithm/kl=in_reward_adaptive"])))
    assert {"algorithm.kl.coef", "algorithm.kl.target", "algorithm.kl.horizon"} <= adaptive
    assert {"loss.center", "optimizer.lr"} <= set(keys(compose("reward")))
    assert {"algorithm.advantage.eps"} <= set(keys(compose("rl", ["algorithm=grpo"])))


def test_formulas_hold_no_number_that_ought_to_be_a_key() -> None:
    """Floats that are neither 0 nor 1 nor the default of a field, in what computes losses and updates."""
    found = {
        (file.relative_to(ROOT / "rlhf").as_posix(), number)
        for layer in ("algorithms", "ops", "rollout", "rewards")
        for file in (ROOT / "rlhf" / layer).glob("*.py")
        for number in floats(ast.parse(file.read_text(encoding="utf-8")))
    }
    assert {place for place in found if place[1] not in (0.0, 1.0)} == set(FIXED)


def floats(node: ast.AST) -> Iterator[float]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.AnnAssign):
            continue
        if isinstance(child, ast.Constant) and isinstance(child.value, float):
            yield child.value
        yield from floats(child)


# Launching

STAND_INS = {
    "$@": "sft",
    "$hostfile": "hostfile",
    "$NODE_RANK": "1",
    "$address": "node0",
    "$port": "29500",
    "${MASTER_PORT:-29500}": "29500",
    "$resume": "true",
    "$processes": "2",
    "${runs#runs/}": "quickstart",
    "$runs": "runs/quickstart",
    "$seed": "0",
    "${policies[$policy]}": "runs/quickstart/sft",
    "${policy}": "sft",
    "$policy": "sft",
    "$decoding": "greedy",
}


def launched() -> list[tuple[str, list[str]]]:
    """(script, words) of every command of ours in the launch scripts, also behind ``stage NAME TITLE``."""
    found = []
    stages = (ROOT / "launch" / "stages.sh").read_text(encoding="utf-8")
    [launcher] = re.findall(r"^launcher=\((.*)\)$", stages, re.MULTILINE)
    for script in sorted((ROOT / "launch").iterdir()):
        text = script.read_text(encoding="utf-8").replace("\\\n", " ")
        text = text.replace('"${launcher[@]}"', launcher)
        command = r'^\s*(?:exec |stage \w+ "[^"]*"\s+)?((?:deepspeed|rlhf|torchrun) .*)$'
        for line in re.findall(command, text, re.MULTILINE):
            words = shlex.split(line, comments=True)
            if not line.endswith('rlhf "$@"'):  # further overrides, not the command
                words = [word for word in words if word != "$@"]
            for name, value in STAND_INS.items():
                words = [word.replace(name, value) for word in words]
            found.append((script.name, words))
    return found


def test_launch_scripts_pass_no_unknown_flag() -> None:
    """DeepSpeed's launcher appends --local_rank, which Hydra rejects, unless it is told not to."""
    from deepspeed.launcher.runner import parse_args

    commands = launched()
    assert {words[words.index("rlhf") + 1] for _, words in commands} == {
        "sft",
        "reward",
        "rl",
        "evaluate",
        "generate",
        "recipe",
    }
    for script, words in commands:
        assert not [word for word in words if "$" in word], f"{script}: {words}"
        if words[0] == "deepspeed":
            arguments = parse_args(words[1:])  # leaves with status 2 when it does not know a flag
            assert arguments.no_local_rank, script
            assert arguments.module, script
        program = words if words[0] == "rlhf" else [arguments.user_script, *arguments.user_args]
        assert program[0] == "rlhf"
        _, name, *overrides = program
        assert OmegaConf.missing_keys(compose(name, overrides)) == set()


# The tests


@pytest.mark.parametrize("module", [name for name in MODULES if name != "rlhf.__main__"])
def test_every_module_imports(module: str) -> None:
    if module == "rlhf.kernels.triton_rows":
        pytest.importorskip("triton", reason="comes with torch's CUDA build")
    importlib.import_module(module)


TOLERANCES = {"rtol", "atol", "rel", "abs", "rel_tol", "abs_tol"}
POSITIONAL = {"allclose": 2, "isclose": 2, "approx": 1, "assert_allclose": 2}
"""Where tolerances begin among the positional arguments."""


def tolerances(source: str) -> Iterator[tuple[int, float]]:
    """(line, value) of every tolerance that is written as a number, or computed from numbers alone."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            given = [word.value for word in node.keywords if word.arg in TOLERANCES]
            given += node.args[POSITIONAL.get(ast.unparse(node.func).split(".")[-1], len(node.args)) :]
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            given = [
                value for key, value in pairs if isinstance(key, ast.Constant) and key.value in TOLERANCES
            ]
        else:
            continue
        for value in given:
            parts = list(ast.walk(value))
            if not any(isinstance(part, ast.Name | ast.Attribute | ast.Call) for part in parts):
                number = eval(ast.unparse(value), {"__builtins__": {}})
                if isinstance(number, int | float):
                    yield node.lineno, number


def test_tolerances_are_found_in_every_form() -> None:
    source = (
        "assert_close(a, b, rtol=1e6, atol=0)\nx == pytest.approx(1, abs=2 * 0.3)\n"
        "torch.allclose(a, b, 0.7)\nf(**{'rtol': 3})\nassert_close(a, b, rtol=loose)\n"
    )
    assert sorted(tolerances(source)) == [(1, 0), (1, 1e6), (2, 0.6), (3, 0.7), (4, 3)]


def test_no_tolerance_accepts_a_wrong_sign() -> None:
    """−x passes for x where rtol ≥ 2 or atol ≥ 2·|x|; 0 passes at half of that.

    Expected values here are of order 1, so half of even the stricter bound is refused, whichever kind it is.
    """
    loose = [
        f"{file.relative_to(ROOT)}:{line} has the tolerance {value}"
        for file in sorted((ROOT / "tests").rglob("*.py"))
        if file != Path(__file__)
        for line, value in tolerances(file.read_text(encoding="utf-8"))
        if not value < 0.5
    ]
    assert loose == []


def test_normalising_without_statistics_is_refused() -> None:
    """OpenRLHF#693, #224: mean 0 and deviation 1 read from a configuration that was never measured."""
    with pytest.raises(
        ValueError, match=r"normalise.data.path must name reference demonstrations for normal"
    ):
        NormaliseConfig(unit_std=True)
    with pytest.raises(ValueError, match="no row is left"):
        Normalisation.of(torch.zeros(3, dtype=torch.float64), unit_std=False)
    equal = torch.tensor([6.0, 12.0, 3.0], dtype=torch.float64)  # three scores of 2
    with pytest.raises(ValueError, match=r"reference demonstrations with different scores, all 3 have 2"):
        Normalisation.of(equal, unit_std=True)
    assert Normalisation.of(equal, unit_std=False).mean == 2.0
