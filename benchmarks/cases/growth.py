"""How the cost of a supervised step grows: with tokens, with the vocabulary, over ranks, by ZeRO's stage."""

from __future__ import annotations

import gc
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.bench import Bench
from benchmarks.cases.models import SMALL, TINY, Size
from benchmarks.cases.rows import FIRST
from benchmarks.cases.supervised_step import SupervisedStep
from benchmarks.cases.zero import STEPS, Run, write_rows
from benchmarks.measure import Timing, peak_extra, timed
from benchmarks.results import Line, say

TOKENS = "tokens, one forward pass"
PASSES = "tokens, passes of equal size"
VOCABULARY = "vocabulary"
RANKS = "ranks"
STAGES = "ZeRO stage, two ranks"
ROUNDS = 3


def run(bench: Bench) -> Iterator[Line]:
    """Each series starts with its smallest; values are ratios to it."""
    size, length = bench.size((SMALL, 128), (TINY, 12))
    rows = bench.size(4, 2)
    times = bench.size([1, 2, 4, 8, 16], [1, 2])
    for cell, passes in ((TOKENS, lambda by: 1), (PASSES, lambda by: by)):
        steps = [(by, _step(size, rows * by, length, rows * by // passes(by))) for by in times]
        yield from _series(bench, cell, steps)
    less = replace(size, vocabulary=bench.size(4096, 211))
    each = [
        (by, _step(replace(less, vocabulary=less.vocabulary * by), 4 * rows, length, 4 * rows))
        for by in bench.size([1, 2, 4, 8], [1, 2])
    ]
    yield from _series(bench, VOCABULARY, each)
    yield from _ranks(bench)


def ratios(lines: Sequence[Line], sizes: Sequence[float]) -> None:
    """Every line gets its size, and its seconds and bytes over those of the first."""
    first = lines[0]
    for line, size in zip(lines, sizes, strict=True):
        line.values["size"] = float(size)
        if line.seconds is not None and first.seconds is not None:
            line.values["seconds ratio"] = line.seconds / first.seconds
        if line.peak_bytes and first.peak_bytes:
            line.values["memory ratio"] = line.peak_bytes / first.peak_bytes


def _step(size: Size, rows: int, length: int, micro: int) -> SupervisedStep:
    """All rows of one length."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(FIRST, size.vocabulary, (rows, length), generator=generator).tolist()
    return SupervisedStep(size=size, rows=tokens, micro=micro)


def _series(bench: Bench, cell: str, steps: Sequence[tuple[int, SupervisedStep]]) -> Iterator[Line]:
    lines = []
    for by, step in steps:
        gc.collect()
        line = _measured(bench, step)
        line.cell, line.contender = cell, f"×{by}"
        say(f"  {cell} ×{by}: {line.seconds:.3f} s")
        lines.append(line)
    ratios(lines, [by for by, _ in steps])
    yield from lines


def _measured(bench: Bench, step: SupervisedStep) -> Line:
    """Time and memory of a step; what the trainer holds all the time is not counted."""
    trainer = step.trainer(bench.device, packed=True)

    def once() -> dict[str, torch.Tensor]:
        trainer.step()
        return {}

    once()
    line = Line(cell="", contender="")
    line.time(Timing(seconds=[timed(once, bench.device) for _ in range(ROUNDS)]))
    line.peak_bytes = peak_extra(once, bench.device)
    line.values["tokens"] = float(step.lengths.sum())
    return line


def _ranks(bench: Bench) -> Iterator[Line]:
    """The same batch by one rank and by two, a core each; then by what two ranks shard."""
    size, rows, length = bench.size((SMALL, 32, 128), (TINY, 4, 12))
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        place = Path(folder)
        write_rows(place / "rows.jsonl", rows * STEPS, length)
        one = Run(place=place, size=size, rows=rows, engine="plain", ranks=1, threads=1)
        two = [replace(one, engine=name, ranks=2, found=[]) for name in ("plain", *_stages())]
        lines = {each.name: _line(each) for each in (one, *two)}
    pair = [replace(lines[name], cell=RANKS) for name in ("plain, 1 rank", "plain, 2 ranks")]
    ratios(pair, [1, 2])
    yield from pair
    stages = [replace(lines[f"{name}, 2 ranks"], cell=STAGES) for name in _stages()]
    ratios(stages, [0, 1, 2, 3])
    yield from stages


def _stages() -> list[str]:
    return [f"zero{stage}" for stage in range(4)]


def _line(each: Run) -> Line:
    each.metrics()
    line = Line(cell="", contender=each.name)
    line.time(Timing(seconds=[row["time/step"] for row in each.found[2:]]))
    line.peak_bytes = round(statistics.median(row["memory"] for row in each.found))
    line.values = each.values()
    say(f"  {each.name}: {line.seconds:.3f} s")
    return line
