"""C1, G1: log-prob and entropy of each token, forward only."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench, Shapes
from benchmarks.cases.head_shapes import GPU_SMALL, cells
from benchmarks.contest import contest
from benchmarks.head.contenders import OURS, naive, ours, torch_native
from benchmarks.measure import Ratio
from benchmarks.results import Line, at_least, at_most

PEERS = (
    "trl functions",
    "trl chunked",
    "openrlhf functions",
    "verl fused",
    "liger scaled",
    "cut-cross-entropy",
)
FLOOR = "floor: 1 product"


def run(bench: Bench, shapes: Shapes | None = None) -> Iterator[Line]:
    """Ours against the floor, naive torch, torch's own op and the peers."""
    for name, cell in cells(bench, shapes):
        outcome = contest(
            bench,
            name,
            [
                cell.floor(1),
                cell.token(OURS, ours, "forward"),
                cell.token("naive", naive, "forward"),
                cell.token("torch native", torch_native, "forward", entropy=False),
                *(cell.peer(peer, "forward") for peer in PEERS),
            ],
        )
        yield from outcome.lines

        def against(other: str, outcome: object = outcome) -> Ratio | None:
            return outcome.ratio(other, OURS)  # type: ignore[attr-defined]

        yield at_least(name, "share of the floor", against(FLOOR), 0.85)
        yield at_least(name, "times naive's speed", against("naive"), 1.3 if "bf16" in name else 1.0)
        yield at_least(name, "times torch native's speed", against("torch native"), 1.0)
        for peer in ("trl functions", "openrlhf functions"):
            yield at_least(name, f"times the speed of {peer}", against(peer), 1.5)
        share = outcome.peak_share(OURS, cell.problem.logits_bytes)
        yield at_most(name, "peak memory over float32 logits", share, 0.1)


def run_small(bench: Bench) -> Iterator[Line]:
    """G5: small hidden sizes."""
    yield from run(bench, GPU_SMALL)
