"""Metrics as (sum, count) pairs, divided once after every micro-batch and every rank has been added.

A mean of means depends on how rows fall on micro-batches and ranks (numerics D44); a sum over a count does
not. Names and units are listed in ``docs/metrics.md``.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True)
class Metrics:
    """Sums, counts and maxima by name, for one step on one rank."""

    pairs: dict[str, tuple[float, float]] = field(default_factory=dict)
    maxima: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """Add ``total``, a sum over ``count`` tokens, rows or steps."""
        old_total, old_count = self.pairs.get(name, (0.0, 0.0))
        self.pairs[name] = (old_total + float(total), old_count + float(count))

    def mean(self, name: str, values: Tensor, mask: Tensor | None = None) -> None:
        """Add every entry of ``values``, or only those under the bool ``mask``."""
        kept = values if mask is None else values[mask]
        self.add(name, kept.detach().double().sum(), kept.numel())

    def value(self, name: str, value: float) -> None:
        """A number that every rank gives once a step, such as a learning rate or seconds: their mean."""
        self.add(name, value, 1)

    def maximum(self, name: str, value: Tensor | float) -> None:
        """Keep the largest value, over micro-batches and ranks."""
        self.maxima[name] = max(float(value), self.maxima.get(name, -math.inf))

    def merge(self, other: Metrics, prefix: str = "") -> None:
        """Add another step's or stage's numbers, under ``prefix``."""
        for name, (total, count) in other.pairs.items():
            self.add(prefix + name, total, count)
        for name, value in other.maxima.items():
            self.maximum(prefix + name, value)

    def reduce(
        self, all_sum: Callable[[Tensor], Tensor], all_max: Callable[[Tensor], Tensor]
    ) -> dict[str, float]:
        """The finished numbers over all ranks; every rank calls this with the same names.

        A mean over nothing (no response ended, say) is left out: it is undefined, not 0.
        """
        names = sorted(self.pairs)
        sums = all_sum(torch.tensor([self.pairs[name] for name in names], dtype=torch.float64).reshape(-1, 2))
        finished = {
            name: total / count
            for name, (total, count) in zip(names, sums.tolist(), strict=True)
            if count > 0
        }
        peaks = sorted(self.maxima)
        values = all_max(torch.tensor([self.maxima[name] for name in peaks], dtype=torch.float64))
        return finished | dict(zip(peaks, values.tolist(), strict=True))


class Clock:
    """Seconds of one step by phase; what no phase claims is ``time/other``."""

    def __init__(self, enter: Callable[[str], object] = lambda phase: None) -> None:
        """``enter`` is told each phase as it begins, and ``"other"`` after it."""
        self._enter = enter
        self._start = time.perf_counter()
        self._phases: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to ``time/NAME``."""
        self._enter(name)
        start = time.perf_counter()
        yield
        self._enter("other")
        self._phases[name] = self._phases.get(name, 0.0) + time.perf_counter() - start

    def report(self, metrics: Metrics, tokens: int, rows: int, ranks: int) -> None:
        """Write times, throughput over all ranks and peak memory into ``metrics``.

        Args:
            metrics: receives the numbers.
            tokens: real tokens, prompts included, that this rank handled in the step.
            rows: responses or texts that this rank handled.
            ranks: world size.
        """
        seconds = time.perf_counter() - self._start
        for name, spent in self._phases.items():
            metrics.value(f"time/{name}", spent)
        metrics.value("time/other", seconds - sum(self._phases.values()))
        metrics.value("time/step", seconds)
        metrics.value("throughput/tokens_per_second", ranks * tokens / seconds)
        metrics.value("throughput/samples_per_second", ranks * rows / seconds)
        metrics.maximum("memory/peak_bytes", peak_bytes())


def peak_bytes() -> int:
    """The largest memory this process has held: of the GPU where there is one, resident otherwise."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
