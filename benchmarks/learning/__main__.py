"""Cost of imitation against the horizon, and labels that active queries save: run; table; queries."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import torch
from tqdm import tqdm

from benchmarks.learning import queries
from benchmarks.learning.horizons import METHODS, measured, picture, table
from benchmarks.results import FOLDER, kept, provenance

RESULTS = FOLDER / "horizons.jsonl"
QUERIES = FOLDER / "queries.jsonl"
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


def run_queries(seeds: int) -> int:
    """Every scale and seed that has no line yet, then the table and the picture of all."""
    known = {(line["scale"], line["seed"]) for line in kept(QUERIES)}
    every = [(scale, seed) for seed in range(seeds) for scale in queries.SCALES]
    facts = provenance(["python -m benchmarks.learning", *sys.argv[1:]], torch.device("cpu"))
    for scale, seed in tqdm([one for one in every if one not in known]):
        lines = queries.measured(seed, scale=scale)
        with QUERIES.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line | facts) + "\n" for line in lines)
    sys.stdout.write(queries.table(kept(QUERIES)))
    queries.picture(kept(QUERIES), FOLDER / "queries.png")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="everything that has no line in results/horizons.jsonl yet")
    runner.add_argument("--seeds", type=int, default=5)
    runner.add_argument("--rounds", type=int, default=20)
    commands.add_parser("table", help="Markdown of results/horizons.jsonl, and results/horizons.png")
    asker = commands.add_parser("queries", help="labels that active queries save, and results/queries.png")
    asker.add_argument("--seeds", type=int, default=10)
    given = parser.parse_args(arguments)
    if given.command == "run":
        return run(given.seeds, given.rounds)
    if given.command == "queries":
        return run_queries(given.seeds)
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
