"""C1, G1: log-prob and entropy of each token, forward only."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench, Shapes
from benchmarks.cases.head_shapes import GPU_SMALL, cells
from benchmarks.contest import contest
from benchmarks.head.contenders import OURS, naive, ours, torch_native
from benchmarks.results import Line, at_least, at_most

PEERS = ("trl functions", "openrlhf functions", "liger scaled")
MORE = ("trl chunked", "verl fused", "cut-cross-entropy")
"""On a GPU, where time is cheap."""
FLOOR = "floor: 1 product"


def run(bench: Bench, shapes: Shapes | None = None) -> Iterator[Line]:
    """Ours against the floor, naive torch, torch's own op and the peers."""
    peers = (*PEERS, *MORE) if bench.device.type == "cuda" else PEERS
    for name, cell in cells(bench, shapes):
        outcome = contest(
            bench,
            name,
            [
                cell.floor(1),
                cell.token(OURS, ours, "forward"),
                cell.token("naive", naive, "forward"),
                cell.token("torch native", torch_native, "forward", entropy=False),
                *(cell.peer(peer, "forward") for peer in peers),
            ],
        )
        yield from outcome.lines
        yield at_least(name, "share of the floor", outcome.ratio(FLOOR, OURS), 0.85)
        low = 1.3 if "bf16" in name else 1.0
        yield at_least(name, "times naive's speed", outcome.ratio("naive", OURS), low)
        yield at_least(name, "times torch native's speed", outcome.ratio("torch native", OURS), 1.0)
        for peer in ("trl functions", "openrlhf functions"):
            yield at_least(name, f"times the speed of {peer}", outcome.ratio(peer, OURS), 1.5)
        share = outcome.peak_share(OURS, cell.problem.logits_bytes)
        yield at_most(name, "peak memory over float32 logits", share, 0.1)


def run_small(bench: Bench) -> Iterator[Line]:
    """G5: small hidden sizes."""
    yield from run(bench, GPU_SMALL)
