"""What ``rlhf plan`` says, beside the most that was held: python -m benchmarks.memory run; table."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import presets
from benchmarks.memory.lines import QUICKSTART, CommandLine, command_lines, make_models
from benchmarks.results import FOLDER, kept, provenance, say
from rlhf.cli.plan import planned
from rlhf.planning.roles import Machine

RESULTS = FOLDER / "memory.jsonl"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
"""The C library gives blocks of 64 KiB and more back when they are freed, and keeps none."""
CADENCE = ("cadence.evaluate_every=0", "cadence.checkpoint_every=2")


def run(wanted: Sequence[str]) -> int:
    """Measure, and write a line each as it is known; the number that failed."""
    if not QUICKSTART.exists():
        sys.stderr.write(f"benchmarks.memory: {QUICKSTART} is missing: run bash launch/quickstart.sh first\n")
        return 2
    facts = provenance(["python -m benchmarks.memory", *sys.argv[1:]], torch.device("cpu"))
    failed = 0
    for line in command_lines(make_models(Path("build/memory/models"))):
        if wanted and line.name not in wanted:
            continue
        found = measured(line)
        if isinstance(found, str):
            failed += 1
            sys.stderr.write(f"{line.name}: {found}\n")
            continue
        say(f"{line.name}: {found}")
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found | facts | {"threads": 1}) + "\n")
    return int(failed > 0)


def measured(line: CommandLine) -> dict[str, Any] | str:
    """Plan and measurement of the fullest rank, in bytes; or what went wrong."""
    plan = planned(line.command, line.overrides, Machine(ranks=line.ranks, device="cpu"))
    with tempfile.TemporaryDirectory(prefix="memory-") as name:
        fault = _run(line, Path(name))
        if fault is not None:
            return fault
        ranks = [json.loads(file.read_text("utf-8")) for file in sorted(Path(name).glob("held_*.json"))]
    tensors = max(rank["tensors"] for rank in ranks)
    return {
        "name": line.name,
        "arguments": [line.command, *line.overrides],
        "ranks": line.ranks,
        "planned": plan.peak,
        "phase": plan.fullest.name,
        "tensors": tensors,
        "resident": max(rank["resident"] for rank in ranks),
    }


def _run(line: CommandLine, folder: Path) -> str | None:
    """Start the ranks; their last words where they failed."""
    file = folder / "asked.json"
    places = [[f"name={name}", f"hydra.run.dir={folder / name}"] for name in ("small", "full")]
    cadence = CADENCE if line.command != "generate" else ()
    small, full = ([*line.overrides, *cadence, *place] for place in places)
    file.write_text(
        json.dumps({"command": line.command, "small": [*small, *line.small], "full": full}), "utf-8"
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={line.ranks}", "-m"]
    program = [
        sys.executable,
        *(launcher if line.ranks > 1 else ["-m"]),
        "benchmarks.memory.worker",
        str(file),
    ]
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return "\n".join(done.stderr.strip().splitlines()[-12:]) or "no message"
    return None


def newest(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The last measurement of each command line."""
    return list({line["name"]: line for line in lines}.values())


def markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """A row a command line."""
    rows = [
        "| command line | plan, MB | tensors, MB | plan ÷ tensors | resident, MB | plan ÷ resident |",
        "|---|---|---|---|---|---|",
    ]
    for line in newest(lines):
        numbers = [line[key] / 1e6 for key in ("planned", "tensors", "resident")]
        rows.append(
            f"| {line['name']} | {numbers[0]:.0f} ({line['phase']}) | {numbers[1]:.0f} | "
            f"{numbers[0] / numbers[1]:.2f} | {numbers[2]:.0f} | {numbers[0] / numbers[2]:.2f} |"
        )
    return "\n".join(rows) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="measure, into results/memory.jsonl")
    runner.add_argument("names", nargs="*", help="of command lines; all where none is given")
    commands.add_parser("table", help="Markdown of results/memory.jsonl")
    commands.add_parser("presets", help="Markdown of what the presets for common sizes are planned to hold")
    given = parser.parse_args(arguments)
    if given.command == "run":
        return run(given.names)
    if given.command == "presets":
        sys.stdout.write(presets.table())
        return 0
    found = kept(RESULTS)
    if not found:
        sys.stderr.write("benchmarks.memory: no results yet: python -m benchmarks.memory run\n")
        return 2
    sys.stdout.write(markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
