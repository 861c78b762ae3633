"""C4: half the rows masked (prompts), another quarter with upstream gradients of zero (clipped tokens)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.bench import Bench
from benchmarks.cases.head_shapes import cells
from benchmarks.contest import contest
from benchmarks.head.contenders import OURS, HeadCell, ours, torch_native
from benchmarks.head.problem import HeadProblem
from benchmarks.results import Line, at_least

ALL = "rlhf, nothing masked"


def run(bench: Bench) -> Iterator[Line]:
    """Ours with and without the mask; torch's own with it."""
    for name, whole in cells(bench):
        masked = HeadCell(bench, _masked(whole.problem))
        outcome = contest(
            bench,
            name,
            [
                whole.token(ALL, ours, "backward"),
                masked.token(OURS, ours, "backward"),
                masked.token("torch native", torch_native, "backward", entropy=False),
            ],
        )
        yield from outcome.lines
        yield at_least(name, "times the speed without a mask", outcome.ratio(ALL, OURS), 1.8)


def _masked(problem: HeadProblem) -> HeadProblem:
    M = problem.shape[0]
    place = torch.arange(M, device=problem.hidden.device) % 4  # 0 and 1 prompt, 2 clipped, 3 counts
    clipped = place == 2
    return replace(
        problem,
        mask=place >= 2,
        upstream=problem.upstream.masked_fill(clipped, 0.0),
        upstream_entropy=problem.upstream_entropy.masked_fill(clipped, 0.0),
    )
