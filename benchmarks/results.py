"""Lines of results: what was measured, by which code, on what machine, with which command."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Ratio, Timing

FOLDER = Path(__file__).parent / "results"
PACKAGES = ("rlhf", "torch", "transformers", "triton", "deepspeed")


@dataclass(kw_only=True, slots=True)
class Line:
    """One contender in one cell of a benchmark, or one target and what was reached."""

    cell: str
    """Shape and dtype, or what else the benchmark varies."""
    contender: str
    """Who; ``target: …`` for a line that compares."""
    seconds: float | None = None
    """Median over the rounds; None where there is nothing to time, or the timing is void."""
    quartiles: list[float] | None = None
    rounds: int | None = None
    peak_bytes: int | None = None
    """Held over what was there before, at most."""
    errors: dict[str, float] = field(default_factory=dict)
    """Against float64."""
    void: str | None = None
    """Why this timing does not count."""
    missing: str | None = None
    """Why this contender did not run."""
    note: str | None = None
    values: dict[str, float] = field(default_factory=dict)
    """Other numbers, named with their unit."""
    target: float | None = None
    reached: float | None = None
    met: bool | None = None
    """None where the rounds do not decide it."""

    def time(self, timing: Timing) -> None:
        """Take the rounds in, unless they are void."""
        if self.void is None:
            self.seconds, self.quartiles = timing.median, list(timing.quartiles)
            self.rounds = len(timing.seconds)


def at_least(cell: str, what: str, reached: Ratio | float | None, target: float) -> Line:
    """A target's line; the verdict is left open where the middle half of the rounds lies on both sides."""
    line = Line(cell=cell, contender=f"target: {what}", target=target)
    if isinstance(reached, Ratio):
        line.reached, line.quartiles = reached.median, [reached.low, reached.high]
        if reached.low >= target or reached.high < target:
            line.met = reached.median >= target
    elif reached is not None:
        line.reached, line.met = reached, reached >= target
    else:
        line.void = "a side of the comparison is missing or void"
    return line


def at_most(cell: str, what: str, reached: float | None, target: float) -> Line:
    """A target that is a bound."""
    line = at_least(cell, what, reached, target)
    if reached is not None:
        line.met = reached <= target
    return line


def provenance(command: Sequence[str], device: torch.device) -> dict[str, Any]:
    """What every line of a run holds."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "command": " ".join(command),
        "versions": {"python": platform.python_version(), **_versions()},
        "cpu": _processor(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
    }


class Writer:
    """Appends lines to a file as they come, so that a run that is stopped keeps what it has."""

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path, self._facts = path, facts
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, benchmark: str, line: Line) -> None:
        """One object a line; fields that say nothing are left out."""
        said = {name: value for name, value in asdict(line).items() if value not in (None, {})}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"id": benchmark, **said, **self._facts}, ensure_ascii=False) + "\n")


def read(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The newest run of each benchmark on each machine: run again there, it replaces all its lines.

    Raises:
        FileNotFoundError: there is no line.
    """
    lines = [json.loads(text) for path in paths for text in path.read_text(encoding="utf-8").splitlines()]
    if not lines:
        raise FileNotFoundError(f"no results in {FOLDER}; run python -m benchmarks run --suite cpu")
    lines.sort(key=lambda line: line["time"])
    newest = {(line["id"], machine(line)): line["time"] for line in lines}
    return [line for line in lines if line["time"] == newest[line["id"], machine(line)]]


def machine(line: Mapping[str, Any]) -> str:
    """What it was measured on."""
    return line.get("gpu") or line["cpu"]


def by_machine(lines: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Machines' lines, in the lines' order."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        found.setdefault(machine(line), []).append(line)
    return found


def kept(file: Path) -> list[dict[str, Any]]:
    """The lines of a file of results; none where nothing has been measured."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def mean_and_error(numbers: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, 0 for a single number."""
    mean = sum(numbers) / len(numbers)
    variance = sum((number - mean) ** 2 for number in numbers) / max(len(numbers) - 1, 1)
    return mean, (variance / len(numbers)) ** 0.5


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def _processor() -> str:
    """Number, name, and the vector instructions that torch uses: they decide more than the name does."""
    lines = _processor_facts()
    if not lines:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    name = f"{len(names)} × {names[0]}" if names else platform.machine()
    return ", ".join([name, torch.backends.cpu.get_cpu_capability(), *bfloat16_instructions()])


def bfloat16_instructions() -> list[str]:
    """Those that the CPU multiplies in bfloat16 with; without any, libraries do so many times slower."""
    flags = next((line.split() for line in _processor_facts() if line.startswith(("flags", "Features"))), [])
    return [name.upper() for name in ("avx512_bf16", "amx_bf16", "bf16") if name in flags]


def _processor_facts() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else []


def say(text: str) -> None:
    """Progress, to the person who waits."""
    print(text, file=sys.stderr, flush=True)
