"""Every offline method, best-of-n and PPO side by side: python -m benchmarks.methods run; table."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.methods.runs import START, Method, evaluation, measured, methods, pairs, shared
from benchmarks.methods.table import frontier, markdown
from benchmarks.results import FOLDER, kept, provenance, say

RESULTS = FOLDER / "methods.jsonl"


def run(seeds: Sequence[int], processes: int) -> int:
    """All seeds that have no line yet; 1 where a command failed, 2 where the quick start is missing."""
    if not Path(START, "rl").is_dir():
        sys.stderr.write(f"benchmarks.methods: {START}/rl is missing: run bash launch/quickstart.sh first\n")
        return 2
    known = {line["seed"] for line in kept(RESULTS)}
    facts = provenance(["python -m benchmarks.methods", *sys.argv[1:]], torch.device("cpu"))
    failed = [seed for seed in seeds if seed not in known and not _seed(seed, processes, facts)]
    return int(bool(failed))


def _seed(seed: int, processes: int, facts: dict[str, Any]) -> bool:
    """Whether every command of a seed came to its end; a policy that is there is not trained again."""
    if not pairs(seed).exists():
        shutil.rmtree(pairs(seed).parents[1], ignore_errors=True)
        if not all(_finished(words) for words in shared(seed)):
            return False
    everything = methods(seed)
    with ThreadPoolExecutor(processes) as pool:
        trained = list(pool.map(_trained, everything))
    if not all(trained) or not _finished(evaluation(seed, everything)):
        return False
    with RESULTS.open("a", encoding="utf-8") as file:
        for line in measured(seed):
            file.write(json.dumps(line | facts | {"threads": 1, "processes": processes}) + "\n")
    return True


def _trained(method: Method) -> bool:
    return Path("runs", method.folder, "model").is_dir() or _finished(method.words)


def _finished(words: Sequence[str]) -> bool:
    say("rlhf " + " ".join(words))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "rlhf", *words], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        say(f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return done.returncode == 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="every seed that has no line in results/methods.jsonl yet")
    runner.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    runner.add_argument("--processes", type=int, default=1, help="commands at once, one thread each")
    commands.add_parser("table", help="Markdown of results/methods.jsonl, and results/methods.png")
    given = parser.parse_args(arguments)
    if given.command == "run":
        return run(given.seeds, given.processes)
    found = kept(RESULTS)
    if not found:
        sys.stderr.write("benchmarks.methods: no results yet: python -m benchmarks.methods run\n")
        return 2
    sys.stdout.write(markdown(found))
    frontier(found, FOLDER / "methods.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
