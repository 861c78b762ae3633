"""A small PPO run as a user would start it, one life of it that may be killed, and what it leaves behind."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
TIMINGS = ("time/", "throughput/", "memory/")
POLL = 0.001
"""Seconds between two looks at a run's folder."""
LIMIT = 300.0
"""Seconds that a life may take before it counts as hanging."""
WORDS = ("a", "bad", "dull", "film", "fine", "good", "it", "plot", "the", "was")
SFT = ["sft", "name=sft", "data.path=demonstrations.jsonl", "model=tiny_llama", "model.layers=1"]
SFT += ["model.hidden=16", "model.heads=2", "model.intermediate=24", "model.context=64"]
SFT += ["tokenizer.vocab_size=300", "batch_size=8", "micro_batch_size=8", "engine=plain"]
REWARD = ["reward", "name=reward", "model.path=runs/sft", "data.path=pairs.jsonl"]
REWARD += ["batch_size=8", "micro_batch_size=8", "engine=plain"]
PPO = ["rl", "actor.model.path=runs/sft", "reward=model", "reward.path=runs/reward"]
PPO += ["prompts.path=prompts.jsonl", "test_prompts.path=prompts.jsonl", "test_prompts.limit=8"]
PPO += ["rollout.prompts=8", "rollout.sampling.max_new_tokens=8", "micro_batch_size=4"]
PPO += ["algorithm/kl=in_reward_adaptive", "algorithm.kl.target=0.1", "algorithm.kl.horizon=50"]
PPO += ["algorithm.minibatches=2", "actor.optimizer.lr=1e-3", "critic.optimizer.lr=1e-3"]
PPO += ["cadence.checkpoint_every=1", "cadence.evaluate_every=5"]


@dataclass(kw_only=True)
class Job:
    """The PPO run and how it is started."""

    folder: Path
    ranks: int
    rollouts: int

    def start(self, name: str) -> Life:
        """A process of the run ``name``, which continues it where it has been checkpointed."""
        run = self.folder / "runs" / name
        resume = any((run / "checkpoints").glob("step_*"))
        if not resume:
            shutil.rmtree(run, ignore_errors=True)  # as the refusal of resume=true says
        engine = "plain" if self.ranks == 1 else "zero2"
        command = [*PPO, f"name={name}", f"rollouts={self.rollouts}", f"engine={engine}"]
        return Life(self.folder, run, [*starter(self.ranks), *command, f"resume={str(resume).lower()}"])


def starter(ranks: int) -> list[str]:
    """How ``rlhf`` is started on so many processes."""
    if ranks == 1:
        return [sys.executable, "-m", "rlhf"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    options = ["--num_gpus", str(ranks), "--master_port", str(port)]
    return [launcher, "--no_local_rank", *options, "--module", "rlhf"]


def prepare(folder: Path) -> None:
    """Data, a language model and a reward model."""
    numbers = random.Random(0)

    def text() -> str:
        return " ".join(numbers.choices(WORDS, k=numbers.randint(2, 6)))

    rows: dict[str, Callable[[], dict[str, str]]] = {
        "demonstrations": lambda: {"prompt": text() + " ", "response": text()},
        "pairs": lambda: {"prompt": text() + " ", "chosen": text() + " good", "rejected": text() + " bad"},
        "prompts": lambda: {"prompt": text() + " "},
    }
    for name, row in rows.items():
        lines = [json.dumps(row()) + "\n" for _ in range(36)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    for command in (SFT, REWARD):
        Life(folder, folder / "runs" / command[0], [*starter(1), *command]).finish()


class Life:
    """One process group of a run, from its start to its end or its death."""

    def __init__(self, folder: Path, run: Path, command: list[str]) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in PLACE}
        environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        self.run, self.log = run, folder / "log.txt"
        self._rows = inode(run / "metrics.jsonl")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self.started = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def stepping(self) -> bool:
        """It has started up: logged a first row, or rewound the rows of the life before."""
        return inode(self.run / "metrics.jsonl") != self._rows

    def wait(self, event: Callable[[], bool]) -> bool:
        """Until the event; False when the process ended before."""
        while not event():
            if self.process.poll() is not None:
                return False
            if self.age > LIMIT:
                self.kill()
                raise TimeoutError(f"{self.run} did not go on within {LIMIT:g} s: {self.log.read_text()}")
            time.sleep(POLL)
        return True

    def finish(self) -> None:
        """Until its own end, which must be a good one."""
        self.wait(lambda: False)
        if self.process.returncode != 0:
            raise RuntimeError(f"{self.run} failed: {self.log.read_text()}")

    def kill(self) -> bool:
        """SIGKILL to every process of the group at once; False when the first had ended by itself."""
        ended = self.process.poll() is not None
        if not ended:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        while alive(self.process.pid):
            time.sleep(POLL)
        return not ended


def alive(group: int) -> bool:
    """Whether a process of the group is there that still could write."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, of = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(of) == group and state not in "ZX":
            return True
    return False


def inode(file: Path) -> int | None:
    """The file's number, which changes when it is replaced; None when there is no file."""
    return file.stat().st_ino if file.exists() else None


def last_whole(run: Path) -> int:
    """Number of the last checkpoint with its final name, 0 without any."""
    return max((int(path.name[5:]) for path in (run / "checkpoints").glob("step_*")), default=0)


def being_written(run: Path) -> bool:
    """A checkpoint with its provisional name is there."""
    return any((run / "checkpoints").glob(".step_*.partial"))


def left_behind(run: Path) -> dict[str, Any]:
    """Everything that a finished run leaves, but for timings: weights, optimizers, metrics and samples."""
    last = run / "checkpoints" / f"step_{last_whole(run):06d}"
    states = sorted(path for path in last.rglob("*") if path.is_file() and path.name != "manifest.json")
    left: dict[str, Any] = {"model": load_file(run / "model" / "model.safetensors")}
    for path in states:
        name = f"checkpoint/{path.relative_to(last)}"
        left[name] = torch.load(path, weights_only=False) if path.suffix == ".pt" else path.read_bytes()
    for name in ("metrics.jsonl", "samples.jsonl"):
        rows = [json.loads(line) for line in (run / name).open()]
        left[name] = [{key: row[key] for key in row if not key.startswith(TIMINGS)} for row in rows]
    return left


def same(one: Any, other: Any) -> bool:
    """Bit for bit, tensors in whatever they are kept."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return (
            isinstance(other, dict) and list(one) == list(other) and all(same(one[k], other[k]) for k in one)
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if hasattr(one, "__dict__"):  # as DeepSpeed's loss scaler, which has no == of its own
        return type(one) is type(other) and same(vars(one), vars(other))
    return bool(one == other)
