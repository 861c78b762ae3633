"""C2, G2: log-prob and entropy, forward and backward, with random upstream gradients of both."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench, Shapes
from benchmarks.cases.head_shapes import GPU_SMALL, cells
from benchmarks.contest import contest
from benchmarks.head.contenders import OURS, naive, ours, torch_native
from benchmarks.results import Line, at_least, at_most

PEERS = ("trl chunked", "verl fused", "cut-cross-entropy")
MORE = ("liger scaled",)
"""On a GPU, where time is cheap."""


def run(bench: Bench, shapes: Shapes | None = None) -> Iterator[Line]:
    """Ours against four products, naive torch, torch's own op and the peers."""
    peers = (*PEERS, *MORE) if bench.device.type == "cuda" else PEERS
    for name, cell in cells(bench, shapes):
        outcome = contest(
            bench,
            name,
            [
                cell.floor(4),
                cell.token(OURS, ours, "backward"),
                cell.token("naive", naive, "backward"),
                cell.token("torch native", torch_native, "backward", entropy=False),
                *(cell.peer(peer, "backward") for peer in peers),
            ],
        )
        yield from outcome.lines
        yield at_least(name, "share of the floor", outcome.ratio("floor: 4 products", OURS), 0.85)
        low = 1.3 if "bf16" in name else 1.0
        yield at_least(name, "times naive's speed", outcome.ratio("naive", OURS), low)
        yield at_least(name, "times torch native's speed", outcome.ratio("torch native", OURS), 1.0)
        for peer in ("trl chunked", "verl fused"):
            yield at_least(name, f"times the speed of {peer}", outcome.ratio(peer, OURS), 1.5)
        naive_peak = outcome.line("naive").peak_bytes
        if naive_peak:
            yield at_most(name, "peak memory over naive's", outcome.peak_share(OURS, naive_peak), 1 / 8)


def run_small(bench: Bench) -> Iterator[Line]:
    """G5: small hidden sizes."""
    yield from run(bench, GPU_SMALL)
