"""C7, G9, G10: whole iterations of PPO, RLOO and GRPO by the command itself, against TRL's trainers.

Both sides sample and train the same number of tokens: how long a response gets is in its prompt (C7), or
none ends before the limit (C7e, G9, G10). One optimiser step an iteration. Prompts are as uneven as C6's
rows, and so are C7's responses. Group methods are rewarded by a function of the text; PPO has a reward model
and a critic.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.bench import Bench
from benchmarks.cases.models import BILLION, HALF_BILLION, OPT, OPT_SMALL, SMALL, SMOL, TINY, TWO, Size
from benchmarks.cases.online_run import Run, Task, prepare
from benchmarks.cases.tensor_contenders import there
from benchmarks.contest import Outcome, contest
from benchmarks.results import Line, at_least, at_most

ALGORITHMS = ("ppo", "rloo", "grpo")
PEERS = {
    "ppo": "TRL 1.12, the last with PPO; keeps the sampler's log-probs, so has one forward pass less",
    "rloo": "default generation; entropies are computed too",
    "grpo": "default generation; entropies are computed too; one step a rollout needs no old log-probs",
}


def run(bench: Bench) -> Iterator[Line]:
    """C7: three algorithms in three shapes, responses of uneven lengths."""
    shapes = [(TWO, 16, 4, 64, 64, 4), (SMALL, 16, 4, 64, 64, 3), (SMOL, 8, 4, 32, 32, 2)]
    yield from _cells(bench, shapes, uneven=True)


def run_even(bench: Bench) -> Iterator[Line]:
    """C7e: the same, responses as long as they may be."""
    shapes = [(TWO, 16, 4, 64, 64, 4), (SMALL, 8, 4, 64, 64, 3), (SMOL, 2, 4, 32, 32, 3)]
    yield from _cells(bench, shapes, uneven=False)


Shape = tuple[Size, int, int, int, int, int]
"""Size, prompts, samples, tokens of a prompt and of a response at most, iterations."""


def _cells(bench: Bench, shapes: Sequence[Shape], *, uneven: bool) -> Iterator[Line]:
    quick: Sequence[Shape] = [(TINY, 2, 2, 8, 8, 2)]
    for size, prompts, samples, width, new, steps in bench.size(shapes, quick):
        for algorithm in ALGORITHMS:
            task = Task(
                algorithm=algorithm,
                size=size,
                scorer=size,
                prompts=prompts,
                samples=samples,
                width=width,
                new=new,
                steps=steps,
                micro=prompts * samples,
                uneven=uneven,
            )
            few = replace(bench, rounds=1 if size is SMOL else 2, least=1, warm_ups=0)
            yield from _wanted(_compare(few, task), task, 2.0)


def run_ppo(bench: Bench) -> Iterator[Line]:
    """G9: DeepSpeed-Chat's workload."""
    task = Task(
        algorithm="ppo",
        size=bench.size(OPT, TINY),
        scorer=bench.size(OPT_SMALL, TINY),
        prompts=bench.size(64, 2),
        samples=1,
        width=bench.size(256, 8),
        new=bench.size(256, 8),
        steps=3,
        micro=bench.size(32, 2),
        precision=bench.size("bfloat16", "float32"),
    )
    outcome = _compare(replace(bench, rounds=1, least=1, warm_ups=0), task)
    yield from _wanted(outcome, task, 1.0)
    yield at_least(task.cell, "responses a second", outcome.line("rlhf").values.get("samples/s"), 25.0)


def run_grpo(bench: Bench) -> Iterator[Line]:
    """G10: 64 prompts, 8 responses of 512 tokens each."""
    for size in bench.size([HALF_BILLION, BILLION], [TINY]):
        task = Task(
            algorithm="grpo",
            size=size,
            scorer=size,
            prompts=bench.size(64, 2),
            samples=bench.size(8, 2),
            width=bench.size(256, 8),
            new=bench.size(512, 8),
            steps=2,
            micro=bench.size(16, 2),
            precision=bench.size("bfloat16", "float32"),
        )
        outcome = _compare(replace(bench, rounds=1, least=1, warm_ups=0), task)
        yield from _wanted(outcome, task, 4.0)
        values = outcome.line("rlhf").values
        share = values["sample s"] / values["step s"] if "sample s" in values else None
        yield at_most(task.cell, "sampling's share of the step", share, 0.5)


def _compare(bench: Bench, task: Task) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        place = Path(folder)
        prepare(task, place)
        ours = Run(task=task, place=place, threads=torch.get_num_threads())
        given = {
            "model": str(place / "model"),
            "reward": str(place / "reward"),
            "prompts": str(place / "prompts.jsonl"),
            "rows": task.rows,
            "samples": task.samples,
            "new": task.new,
            "length": task.length,
            "steps": task.steps,
            "micro": task.micro,
            "bf16": task.precision == "bfloat16",
        }
        name = f"trl {task.algorithm}"
        right = {"length": torch.tensor([task.length])}
        theirs = there(bench, name, given, right, note=PEERS[task.algorithm], once=True)
        outcome = contest(bench, task.cell, [ours.contender(), theirs])
        outcome.line("rlhf").values |= ours.phases
        return outcome


def _wanted(outcome: Outcome, task: Task, times: float) -> Iterator[Line]:
    yield from outcome.lines
    speed = outcome.ratio(f"trl {task.algorithm}", "rlhf")
    yield at_least(task.cell, "times TRL's speed", speed, times)
    share = outcome.line("rlhf").values.get("other share")
    yield at_most(task.cell, "other's share of the step", share, 0.05)
