"""C6: one step of each offline stage."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.cases import preference_step, reward_step, supervised_step
from benchmarks.results import Line


def run(bench: Bench) -> Iterator[Line]:
    """Supervised fine-tuning, reward model, direct preference optimisation."""
    yield from supervised_step.run(bench)
    yield from reward_step.run(bench)
    yield from preference_step.run(bench)
