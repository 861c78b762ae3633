"""C7: whole iterations of GRPO and PPO by the command itself, with phases, against TRL's trainer."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from benchmarks.bench import Bench
from benchmarks.cases.models import SMALL, TINY, Size
from benchmarks.cases.tensor_contenders import there
from benchmarks.cases.tokenizer import save_with_tokenizer
from benchmarks.contest import Contender, Verdict, contest
from benchmarks.results import Line, at_least, at_most

PROMPTS, SAMPLES, STEPS = 16, 4, 4
PHASES = ("sample", "score", "logprobs", "advantages", "update", "other")


def run(bench: Bench) -> Iterator[Line]:
    """16 prompts × 4 samples, one optimiser step an iteration, a reward that is a function."""
    size, new = bench.size((SMALL, 64), (TINY, 8))
    few = replace(bench, rounds=2, least=2)
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        place = Path(folder)
        save_with_tokenizer(size.causal_lm(), size.vocabulary, place / "model")
        _write_prompts(place / "prompts.jsonl", size, new)
        for algorithm in ("grpo", "ppo"):
            ours = Run(place=place, algorithm=algorithm, new=new, threads=torch.get_num_threads())
            cell = f"{algorithm} {size.name} {PROMPTS}×{SAMPLES} {new}+{new}"
            given = {"model": str(place / "model"), "prompts": str(place / "prompts.jsonl"), "new": new}
            right = {"length": torch.tensor([float(new)])}
            theirs = there(few, f"trl {algorithm}", given, right, note="as many optimiser steps")
            outcome = contest(few, cell, [ours.contender(), theirs])
            outcome.line("rlhf").values |= ours.phases
            yield from outcome.lines
            yield at_least(cell, "times TRL's speed", outcome.ratio(f"trl {algorithm}", "rlhf"), 2.0)
            yield at_most(cell, "other's share of the step", ours.phases.get("other share"), 0.05)


def distinct(prompts: list[str], responses: list[str], columns: list[dict[str, object]]) -> list[float]:
    """The reward: how many different words a response has."""
    return [float(len(set(response.split()))) for response in responses]


@dataclass(kw_only=True, slots=True)
class Run:
    """``rlhf rl`` in a process of its own, read from its metrics."""

    place: Path
    algorithm: str
    new: int
    threads: int
    phases: dict[str, float] = field(default_factory=dict)
    """Of the last run: seconds of each phase, median over the iterations but the first."""

    def contender(self) -> Contender:
        """The gate: sampler and scorer agree on every log-prob."""
        return Contender(name="rlhf", check=self._check, seconds=self._seconds)

    def _check(self) -> Verdict:
        gap = max(row["ledger/logprob_gap_max"] for row in self._metrics())
        return Verdict(
            errors={"logprobs": gap}, fault=f"log-probs off by {gap:.2g}" if not gap < 1e-3 else None
        )

    def _seconds(self) -> float:
        rows = self._metrics()[1:]

        def median(name: str) -> float:
            return statistics.median(row.get(f"time/{name}", 0.0) for row in rows)

        step = median("step")
        self.phases = {f"{name} s": median(name) for name in PHASES}
        self.phases["other share"] = median("other") / step
        self.phases["samples/s"] = PROMPTS * SAMPLES / step
        return step

    def _metrics(self) -> list[dict[str, float]]:
        with tempfile.TemporaryDirectory(dir=self.place) as folder:
            settings = {"OMP_NUM_THREADS": str(self.threads), "PYTHONPATH": str(Path(__file__).parents[2])}
            done = subprocess.run(
                [sys.executable, "-m", "rlhf", "rl", *self._arguments()],
                cwd=folder,
                env={**os.environ, **settings},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr else "rlhf rl failed")
            (log,) = Path(folder).glob("runs/*/metrics.jsonl")
            return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]

    def _arguments(self) -> list[str]:
        return [
            "name=iteration",
            f"algorithm={self.algorithm}",
            f"actor.model.path={self.place / 'model'}",
            f"prompts.path={self.place / 'prompts.jsonl'}",
            "reward=function",
            f"reward.function={__name__}:distinct",
            "engine=plain",
            f"rollout.prompts={PROMPTS}",
            f"rollout.samples={SAMPLES}",
            "rollout.exact_kl=false",
            f"rollout.sampling.max_new_tokens={self.new}",
            "algorithm.epochs=1",
            "algorithm.minibatches=1",
            f"micro_batch_size={PROMPTS * SAMPLES}",
            f"rollouts={STEPS}",
            "cadence.evaluate_every=0",
            "cadence.checkpoint_every=0",
        ]


def _write_prompts(path: Path, size: Size, length: int) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, size.vocabulary, (PROMPTS * STEPS, length), generator=generator)
    rows = [{"prompt": " ".join(str(token) for token in row)} for row in tokens.tolist()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
