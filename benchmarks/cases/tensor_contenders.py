"""Contenders that are functions of plain tensors, ours here and the peers' in their process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.accuracy import error
from benchmarks.bench import Bench
from benchmarks.contest import Contender, Verdict
from benchmarks.measure import timed

Tensors = dict[str, Tensor]

ALLOWED = 1e-4
"""Share of the largest right number that a result may be off."""


def here(
    bench: Bench, name: str, work: Callable[[], Tensors], right: Tensors, note: str | None = None
) -> Contender:
    """A function of this process."""
    return Contender(
        name=name,
        note=note,
        check=lambda: judged(work(), right),
        seconds=lambda: timed(work, bench.device),
    )


def there(
    bench: Bench,
    name: str,
    given: Mapping[str, Any],
    right: Tensors,
    note: str | None = None,
    *,
    once: bool = False,
    judge: Callable[[Tensors], Verdict] | None = None,
) -> Contender:
    """A function of the peers; the file is read before the clock starts.

    Args:
        bench: the run.
        name: in `benchmarks.peers.functions`.
        given: what it is told.
        right: what it must find.
        note: remark on its line.
        once: the run that is checked is also the first round: for runs that begin with steps they do not
            count.
        judge: another gate than being near what is right.
    """
    missing = bench.peers.missing(name)
    if missing is not None:
        return Contender(name=name, seconds=None, missing=missing)
    arguments, results = (bench.peers.path(f"{name.replace(' ', '_')}_{part}.pt") for part in ("in", "out"))
    torch.save(dict(given), arguments)

    checked: list[float] = []
    peaks: list[int] = []

    def run() -> float:
        if checked:
            return checked.pop()
        answer = bench.peers.ask("call", name=name, arguments=str(arguments), path=str(results))
        peaks[:] = [answer["peak"]] if "peak" in answer else []
        return float(answer["seconds"])

    def check() -> Verdict:
        seconds = run()
        checked.extend([seconds] * once)
        found = torch.load(results, weights_only=True)
        return judged(found, right) if judge is None else judge(found)

    return Contender(name=name, note=note, check=check, seconds=run, peak=lambda: peaks[0] if peaks else None)


def judged(found: Tensors, right: Tensors, allowed: float = ALLOWED) -> Verdict:
    """Every result that there is must be right."""
    sizes = {name: error(name, part, right[name]) for name, part in found.items()}
    wrong = [f"{name} off by {size:.2g}" for name, size in sizes.items() if not size <= allowed]
    return Verdict(errors=sizes, fault=", ".join(wrong) or None)
