"""``rlhf rl`` on random models, in a process of its own; what an iteration does is a `Task`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases.models import Size, countdown, endless, tokens_left
from benchmarks.cases.rows import lognormal, random_rows
from benchmarks.cases.tokenizer import save_with_tokenizer
from benchmarks.contest import Contender, Verdict

PHASES = ("sample", "score", "logprobs", "advantages", "update", "other")
PATIENCE = 600.0
"""Seconds after which a run is ended."""
BFLOAT = ["engine=zero1", "engine.precision=bfloat16"]


@dataclass(kw_only=True, slots=True)
class Task:
    """What an iteration does."""

    algorithm: str
    size: Size
    scorer: Size
    """Of reward model and critic."""
    prompts: int
    samples: int
    width: int
    """Tokens of a prompt at most; lengths are lognormal."""
    new: int
    """Tokens of a response."""
    steps: int
    """Iterations of a run; the first is not counted."""
    micro: int
    """Rows of a forward and backward pass."""
    precision: str = "float32"
    uneven: bool = False
    """Responses end at lognormal lengths, in each iteration the same ones; else at the limit."""

    @property
    def lengths(self) -> torch.Tensor:
        """(prompts,) tokens of the responses to each prompt."""
        if not self.uneven:
            return torch.full((self.prompts,), self.new)
        generator = torch.Generator().manual_seed(1)
        drawn = lognormal(self.prompts, self.new, generator)
        return drawn[torch.randperm(self.prompts, generator=generator)]

    @property
    def length(self) -> float:
        """Mean tokens of a response."""
        return float(self.lengths.double().mean())

    @property
    def rows(self) -> int:
        """Responses of an iteration."""
        return self.prompts * self.samples

    @property
    def cell(self) -> str:
        """Its name in the table."""
        sizes = f"{self.prompts}×{self.samples} ≤{self.width}+{'≤' * self.uneven}{self.new}"
        return f"{self.algorithm} {self.size.name} {sizes}"


def distinct(prompts: list[str], responses: list[str], columns: list[dict[str, object]]) -> list[float]:
    """The reward: how many different words a response has."""
    return [float(len(set(response.split()))) for response in responses]


@dataclass(kw_only=True, slots=True)
class Run:
    """``rlhf rl`` in a process of its own, read from its metrics."""

    task: Task
    place: Path
    threads: int
    phases: dict[str, float] = field(default_factory=dict)
    """Of the last run: seconds of each phase, in its iteration of median length but for the first."""
    checked: list[Mapping[str, float]] = field(default_factory=list)
    """Metrics of the run that was checked: the first round."""

    def contender(self) -> Contender:
        """The gate: sampler and scorer agree on every log-prob, and every response has all its tokens."""
        return Contender(name="rlhf", check=self._check, seconds=self._seconds)

    def _check(self) -> Verdict:
        self.checked = self._metrics()
        gap = max(row["ledger/logprob_gap_max"] for row in self.checked)
        wrong = [row["rollout/length"] for row in self.checked if row["rollout/length"] != self.task.length]
        allowed = 1e-3 if self.task.precision == "float32" else 0.5
        fault = f"log-probs off by {gap:.2g}" if not gap < allowed else None
        if wrong:
            fault = f"responses of {wrong[0]:.5g} tokens, expected {self.task.length:.5g}"
        return Verdict(errors={"logprobs": gap}, fault=fault)

    def _seconds(self) -> float:
        found, self.checked = self.checked or self._metrics(), []
        rows = sorted(found[1:], key=lambda row: row["time/step"])
        middle = rows[(len(rows) - 1) // 2]  # one iteration's phases add up, medians of each would not
        step = middle["time/step"]
        self.phases = {f"{name} s": middle.get(f"time/{name}", 0.0) for name in PHASES}
        self.phases |= {"step s": step, "other share": self.phases["other s"] / step}
        self.phases["samples/s"] = self.task.rows / step
        return step

    def _metrics(self) -> list[Mapping[str, float]]:
        with tempfile.TemporaryDirectory(dir=self.place) as folder:
            settings = {"OMP_NUM_THREADS": str(self.threads), "PYTHONPATH": str(Path(__file__).parents[2])}
            done = subprocess.run(
                [sys.executable, "-m", "rlhf", "rl", *self._arguments()],
                cwd=folder,
                env={**os.environ, **settings},
                capture_output=True,
                text=True,
                check=False,
                timeout=PATIENCE,
            )
            if done.returncode != 0:
                raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr else "rlhf rl failed")
            (log,) = Path(folder).glob("runs/*/metrics.jsonl")
            return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]

    def _arguments(self) -> list[str]:
        task = self.task
        if task.algorithm == "ppo":
            reward = ["reward=model", f"reward.path={self.place / 'reward'}"]
        else:
            reward = ["reward=function", f"reward.function={__name__}:distinct"]
        return [
            "name=iteration",
            f"algorithm={task.algorithm}",
            f"actor.model.path={self.place / 'model'}",
            f"prompts.path={self.place / 'prompts.jsonl'}",
            *reward,
            *(["engine=plain"] if task.precision == "float32" else BFLOAT),
            f"rollout.prompts={task.prompts}",
            f"rollout.samples={task.samples}",
            "rollout.exact_kl=false",
            f"rollout.sampling.max_new_tokens={task.new}",
            "algorithm.missing_eos_score=null",
            "algorithm.epochs=1",
            "algorithm.minibatches=1",
            f"micro_batch_size={task.micro}",
            f"rollouts={task.steps}",
            "cadence.evaluate_every=0",
            "cadence.checkpoint_every=0",
        ]


def prepare(task: Task, place: Path) -> None:
    """Policy, reward model and prompts, as files."""
    model = task.size.causal_lm()
    model = countdown(model, task.new) if task.uneven else endless(model)
    save_with_tokenizer(model, task.size.vocabulary, place / "model")
    if task.algorithm == "ppo":
        scorer = replace(task.scorer, vocabulary=task.size.vocabulary)
        save_with_tokenizer(scorer.classifier(), scorer.vocabulary, place / "reward")
    rows: list[dict[str, Any]] = [{"prompt": " ".join(map(str, prompt))} for prompt in prompts_of(task)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (place / "prompts.jsonl").write_text(lines, encoding="utf-8")


def prompts_of(task: Task) -> list[list[int]]:
    """The prompts of an iteration, and so of each one where responses are uneven; else of all."""
    generator = torch.Generator().manual_seed(0)
    count = task.prompts if task.uneven else task.prompts * task.steps
    prompts = random_rows(lognormal(count, task.width, generator), task.size.vocabulary, generator)
    if task.uneven:
        numbers = tokens_left(task.size.vocabulary, task.new)
        for prompt, length in zip(prompts, task.lengths, strict=True):
            prompt[-1] = int((numbers == length).nonzero()[0])
    return prompts
