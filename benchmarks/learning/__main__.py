"""Cost of imitation against the horizon: python -m benchmarks.learning run; table."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import torch
from tqdm import tqdm

from benchmarks.learning.horizons import METHODS, measured, picture, table
from benchmarks.results import FOLDER, kept, provenance

RESULTS = FOLDER / "horizons.jsonl"
HORIZONS = (2, 4, 8, 16, 32, 64)


def run(seeds: int, rounds: int) -> int:
    """Every method, horizon and seed that has no line yet."""
    known = {(line["method"], line["horizon"], line["seed"]) for line in kept(RESULTS)}
    every = [(m, T, seed) for seed in range(seeds) for T in HORIZONS for m in METHODS]
    facts = provenance(["python -m benchmarks.learning", *sys.argv[1:]], torch.device("cpu"))
    for method, horizon, seed in tqdm([one for one in every if one not in known]):
        found = measured(method, horizon=horizon, rounds=rounds, seed=seed)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found | facts) + "\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="everything that has no line in results/horizons.jsonl yet")
    runner.add_argument("--seeds", type=int, default=5)
    runner.add_argument("--rounds", type=int, default=20)
    commands.add_parser("table", help="Markdown of results/horizons.jsonl, and results/horizons.png")
    given = parser.parse_args(arguments)
    if given.command == "run":
        return run(given.seeds, given.rounds)
    found = kept(RESULTS)
    if not found:
        sys.stderr.write("benchmarks.learning: no results yet: python -m benchmarks.learning run\n")
        return 2
    sys.stdout.write(table(found))
    picture(found, FOLDER / "horizons.png")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
