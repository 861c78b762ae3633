"""Seconds and bytes: contenders in turns, ratios within a round, peak memory over what was there before.

Needs torch only: the peers' worker measures with the same functions.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch


@dataclass(kw_only=True, slots=True)
class Timing:
    """Seconds of one contender, one number a round."""

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The middle half of the rounds lies between them."""
        return quartiles(self.seconds)


@dataclass(kw_only=True, slots=True)
class Ratio:
    """How many times as long one contender takes as another, by the rounds in which both ran."""

    median: float
    low: float
    high: float

    @property
    def decided(self) -> bool:
        """The middle half of the rounds lies on one side of 1."""
        return self.low > 1.0 or self.high < 1.0


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile, inclusive."""
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def ratio(one: Timing, other: Timing) -> Ratio:
    """``one`` over ``other``, round by round: what disturbs a round disturbs both.

    Raises:
        ValueError: they did not run the same rounds.
    """
    if len(one.seconds) != len(other.seconds) or not one.seconds:
        counts = f"{len(one.seconds)} and {len(other.seconds)}"
        raise ValueError(f"ratio: {counts} rounds, expected the same number of interleaved rounds")
    each = [a / b for a, b in zip(one.seconds, other.seconds, strict=True)]
    low, high = quartiles(each)
    return Ratio(median=statistics.median(each), low=low, high=high)


def interleaved(
    contenders: Mapping[str, Callable[[], float]], *, rounds: int, least: int, budget: float, warm_ups: int
) -> dict[str, Timing]:
    """Every contender once a round, each round starting with another one.

    Args:
        contenders: each runs once and returns its seconds.
        rounds: at most so many.
        least: at least so many, whatever they take.
        budget: seconds after which no further round begins.
        warm_ups: uncounted runs of each before the first round.
    """
    for run in contenders.values():
        for _ in range(warm_ups):
            run()
    timings = {name: Timing() for name in contenders}
    names, start = list(contenders), time.perf_counter()
    for index in range(rounds):
        if index >= least and time.perf_counter() - start > budget:
            break
        turn = index % max(len(names), 1)
        for name in names[turn:] + names[:turn]:
            timings[name].seconds.append(contenders[name]())
    return timings


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run; on a GPU until the device has done its work."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_extra(work: Callable[[], Mapping[str, torch.Tensor]], device: torch.device) -> int | None:
    """Bytes that one run holds at most, over what was held before and beside the results that it returns.

    None where the system does not tell. On a CPU it is resident memory: what the allocator keeps is handed
    back first, and the system's own high-water mark is reset.
    """
    before = held(device)
    if before is None:
        return None
    results = work()
    return max(most_since(before, device) - _bytes(results), 0)


def held(device: torch.device) -> int | None:
    """Bytes held now, from where :func:`most_since` starts; None where the system does not tell."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    return _resident("VmRSS") if _reset_high_water() else None


def most_since(before: int, device: torch.device) -> int:
    """Bytes held at most since then, over what was held."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return _resident("VmHWM") - before


def _bytes(results: Mapping[str, torch.Tensor]) -> int:
    return sum(part.nbytes for part in results.values())


def _reset_high_water() -> bool:
    """Linux: hand unused memory back, and let the high-water mark start from here."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return False
    return True


def _resident(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")
