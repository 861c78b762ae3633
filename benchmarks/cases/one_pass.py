"""C3, G3: a clipped surrogate and its gradients in one pass over the head."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.cases.head_shapes import cells
from benchmarks.contest import contest
from benchmarks.head.contenders import naive_loss, our_sweep, our_two_passes
from benchmarks.results import Line, at_least, at_most

SWEEP, TWO = "rlhf one pass", "rlhf two passes"


def run(bench: Bench) -> Iterator[Line]:
    """One pass against three products, our two passes, naive torch and Liger's chunked loss."""
    for name, cell in cells(bench):
        outcome = contest(
            bench,
            name,
            [
                cell.floor(3),
                cell.loss(SWEEP, our_sweep),
                cell.loss(TWO, our_two_passes),
                cell.loss("naive", naive_loss),
                cell.peer("liger grpo", "loss"),
            ],
        )
        yield from outcome.lines
        yield at_least(name, "share of the floor", outcome.ratio("floor: 3 products", SWEEP), 0.85)
        yield at_least(name, "times our two passes' speed", outcome.ratio(TWO, SWEEP), 1.25)
        yield at_least(name, "times naive's speed", outcome.ratio("naive", SWEEP), 1.0)
        yield at_least(name, "times Liger's speed", outcome.ratio("liger grpo", SWEEP), 2.0)
        naive_peak = outcome.line("naive").peak_bytes
        if naive_peak:
            yield at_most(name, "peak memory over naive's", outcome.peak_share(SWEEP, naive_peak), 1 / 8)
