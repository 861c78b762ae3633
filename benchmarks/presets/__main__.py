"""Runs every preset on every task and prints the table: python -m benchmarks.presets run; table."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.presets.runs import Run, all_runs, tasks
from benchmarks.presets.table import curves, markdown
from benchmarks.results import FOLDER, kept, provenance

RESULTS = FOLDER / "presets.jsonl"
KEPT = ("reward/score", "actor/kl_reference", "rollout/length", "rollout/ended_fraction")


def run(folder: Path, scratch: Path, seeds: int, processes: int) -> int:
    """All that have no line yet, ``processes`` at once, one thread each; the number that failed."""
    missing = [
        path
        for task in tasks(folder)
        for path in (part.partition("=")[2] for part in task.overrides if ".path=" in part)
        if not Path(path).exists()
    ]
    if missing:
        sys.stderr.write(
            f"benchmarks.presets: {missing[0]} is missing: run bash launch/quickstart.sh and "
            "bash launch/arithmetic.sh first\n"
        )
        return 2
    known = {(line["task"], line["label"], line["seed"]) for line in kept(RESULTS)}
    wanted = [one for one in all_runs(folder, seeds) if (one.task.name, one.label, one.seed) not in known]
    facts = provenance(["python -m benchmarks.presets", *sys.argv[1:]], torch.device("cpu"))
    failed = 0
    with ThreadPoolExecutor(processes) as pool:
        done = pool.map(lambda one: (one, finished(one, scratch)), wanted)
        for one, found in tqdm(done, total=len(wanted)):
            if isinstance(found, str):
                failed += 1
                sys.stderr.write(f"{one.slug}: {found}\n")
                continue
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found | facts | {"threads": 1, "processes": processes}) + "\n")
    return int(failed > 0)


def finished(one: Run, scratch: Path) -> dict[str, Any] | str:
    """The run's numbers, or what went wrong."""
    command = [sys.executable, "-m", "rlhf", "rl", *one.arguments(scratch)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no message"])[-1]
    rows = [
        json.loads(line) for line in (scratch / one.slug / "metrics.jsonl").read_text("utf-8").splitlines()
    ]
    return {
        "task": one.task.name,
        "label": one.label,
        "seed": one.seed,
        "rollouts": one.task.rollouts,
        "seconds_per_rollout": sum(row["time/step"] for row in rows[1:]) / (len(rows) - 1),
        "steps": rows[-1]["actor/steps"],
        **{name: rows[-1][f"eval/{name}"] for name in KEPT},
        "start": {name: rows[0][name] for name in KEPT},
        "curve": {name: [round(row[name], 4) for row in rows] for name in KEPT[:2]},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.presets", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="everything that has no line in results/presets.jsonl yet")
    runner.add_argument("--seeds", type=int, default=3)
    runner.add_argument("--processes", type=int, default=1, help="runs at once, one thread each")
    runner.add_argument("--runs", type=Path, default=Path("runs"), help="where the launch scripts put theirs")
    runner.add_argument("--scratch", type=Path, default=Path("runs/presets"))
    commands.add_parser("table", help="Markdown of results/presets.jsonl, and results/presets.png")
    given = parser.parse_args(arguments)
    if given.command == "run":
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        return run(given.runs.resolve(), given.scratch.resolve(), given.seeds, given.processes)
    found = kept(RESULTS)
    if not found:
        sys.stderr.write("benchmarks.presets: no results yet: python -m benchmarks.presets run\n")
        return 2
    sys.stdout.write(markdown(found))
    curves(found, FOLDER / "presets.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
