"""G6: how many tokens the head takes, forward and backward, and whether its workspace stays the same."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.bench import Bench, cell_name
from benchmarks.head import tasks
from benchmarks.head.contenders import OURS, naive, ours
from benchmarks.head.problem import HeadProblem
from benchmarks.head.tasks import TokenFunction
from benchmarks.measure import peak_extra
from benchmarks.results import Line, at_least, at_most, say

HIDDEN, VOCABULARY = 1536, 151_936
"""Of Qwen2.5-1.5B."""


def run(bench: Bench) -> Iterator[Line]:
    """Twice as many tokens until memory is used up; errors are G2's business."""
    H, V = bench.size((HIDDEN, VOCABULARY), (16, 503))
    counts = bench.size([1 << power for power in range(13, 22)], [64, 128])
    most = dict.fromkeys((OURS, "naive"), 0)
    peaks: list[int] = []
    for name, function in ((OURS, ours), ("naive", naive)):
        for tokens in counts:
            line = _line(bench, (tokens, H, V), name, function)
            yield line
            if line.missing is not None:
                break
            most[name] = tokens
            if name == OURS and line.peak_bytes is not None:
                peaks.append(line.peak_bytes)
    yield at_least("all", "tokens", float(most[OURS]), 1e6)
    if peaks:
        yield at_most("all", "GiB beyond results at most", max(peaks) / 2**30, 1.2)


def _line(bench: Bench, shape: tuple[int, int, int], name: str, function: TokenFunction) -> Line:
    line = Line(cell=cell_name(shape, torch.bfloat16), contender=name)
    try:
        problem = _flat(shape, bench.device)
        work = partial(tasks.backward, function, problem, entropy_gradient=True)
        line.peak_bytes = peak_extra(work, bench.device)
    except torch.OutOfMemoryError:
        line.missing = "out of memory"
    say(f"  {line.cell:28s} {name:8s} {line.missing or line.peak_bytes}")
    return line


def _flat(shape: tuple[int, int, int], device: torch.device) -> HeadProblem:
    """Random numbers whose logits are never made."""
    M, H, V = shape
    per_row = torch.randn(4, M, device=device)
    return HeadProblem(
        hidden=torch.randn(M, H, device=device, dtype=torch.bfloat16),
        weight=torch.randn(V, H, device=device, dtype=torch.bfloat16) / H**0.5,
        targets=torch.randint(0, V, (M,), device=device),
        upstream=per_row[0],
        upstream_entropy=per_row[1],
        mask=torch.ones(M, dtype=torch.bool, device=device),
        old_logprobs=per_row[2],
        advantages=per_row[3],
    )
