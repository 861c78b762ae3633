"""Contenders side by side in one run: gate, interleaved rounds, peak memory, targets."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from benchmarks.bench import Bench
from benchmarks.measure import Ratio, Timing, interleaved, ratio
from benchmarks.peers.client import PeerError
from benchmarks.results import Line, say

FAILURES = (PeerError, RuntimeError, NotImplementedError, subprocess.TimeoutExpired)
"""Of one contender, which leave the others their turns."""


@dataclass(kw_only=True, slots=True)
class Verdict:
    """What the accuracy gate says of one contender."""

    errors: dict[str, float]
    fault: str | None
    """Why its timing is void; None where it counts."""
    mean_errors: dict[str, float] = field(default_factory=dict)
    """Root mean squares, where the benchmark is about them."""


@dataclass(kw_only=True, slots=True)
class Contender:
    """One way to do the cell's work."""

    name: str
    seconds: Callable[[], float] | None
    """Runs once; None where the contender is missing."""
    check: Callable[[], Verdict] | None = None
    """The accuracy gate; None for floors, whose result nobody uses."""
    peak: Callable[[], int | None] | None = None
    note: str | None = None
    missing: str | None = None
    """Why it cannot run."""


@dataclass(kw_only=True, slots=True)
class Outcome:
    """A cell's lines and the rounds behind them."""

    lines: list[Line]
    timings: dict[str, Timing]

    def line(self, name: str) -> Line:
        """Of one contender."""
        return next(line for line in self.lines if line.contender == name)

    def ratio(self, one: str, other: str) -> Ratio | None:
        """``one`` over ``other`` in time; None where one of them is missing or void."""
        if one not in self.timings or other not in self.timings:
            return None
        return ratio(self.timings[one], self.timings[other])

    def peak_share(self, name: str, whole: float) -> float | None:
        """Peak memory over ``whole`` bytes."""
        peak = self.line(name).peak_bytes
        return None if peak is None else peak / whole


def contest(bench: Bench, cell: str, contenders: Sequence[Contender]) -> Outcome:
    """Check, time in turns, then measure memory. What fails the check is never timed."""
    say(f"  {cell:28s} … checking {len(contenders)} contenders")
    lines = {each.name: _checked(cell, each) for each in contenders}
    running = {
        each.name: each
        for each in contenders
        if each.seconds is not None and lines[each.name].void is None and lines[each.name].missing is None
    }
    say(f"  {cell:28s} … timing {len(running)} in turns")
    failed: dict[str, str] = {}
    timings = interleaved(
        {name: partial(_lasting, each, failed) for name, each in running.items()},
        rounds=bench.rounds,
        least=bench.least,
        budget=bench.budget,
        warm_ups=bench.warm_ups,
    )
    for name, fault in failed.items():
        lines[name].missing = fault
        del timings[name]
    for name, timing in timings.items():
        lines[name].time(timing)
        measure = running[name].peak
        if measure is not None:
            lines[name].peak_bytes = measure()
    for line in lines.values():
        say(f"  {cell:28s} {describe(line)}")
    return Outcome(lines=list(lines.values()), timings=timings)


def _checked(cell: str, contender: Contender) -> Line:
    """The contender's line after the gate."""
    line = Line(cell=cell, contender=contender.name, note=contender.note, missing=contender.missing)
    if contender.missing is not None or contender.check is None:
        return line
    try:
        verdict = contender.check()
    except FAILURES as error:
        line.missing = _failure(error)
        return line
    line.errors, line.void = verdict.errors, verdict.fault
    return line


def _lasting(contender: Contender, failed: dict[str, str]) -> float:
    """One round; NaN for one that fails, then and in the rounds that follow."""
    assert contender.seconds is not None
    if contender.name in failed:
        return math.nan
    try:
        return contender.seconds()
    except FAILURES as error:
        failed[contender.name] = _failure(error)
        return math.nan


def _failure(error: Exception) -> str:
    return f"failed: {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}"


def describe(line: Line) -> str:
    """One line for a person."""
    if line.missing is not None:
        return f"{line.contender:34s} missing: {line.missing}"
    if line.void is not None:
        return f"{line.contender:34s} void: {line.void}"
    parts = [f"{line.contender:34s}"]
    if line.seconds is not None:
        parts.append(f"{line.seconds * 1e3:10.2f} ms ({line.rounds} rounds)")
    if line.peak_bytes is not None:
        parts.append(f"{line.peak_bytes / 2**20:8.1f} MiB")
    if line.reached is not None:
        verdict = {True: "met", False: "MISSED", None: "undecided"}[line.met]
        parts.append(f"{line.reached:.3g} for {line.target:.3g}: {verdict}")
    parts += [f"{name} {value:.4g}" for name, value in line.values.items()]
    return "  ".join(parts)
