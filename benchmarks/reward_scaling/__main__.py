"""Accuracy against comparisons and model size: python -m benchmarks.reward_scaling run; table.

``run`` makes the film reviews' data, trains every reward model that is not there yet, and adds its line to
``results/reward_scaling.jsonl``; it may be stopped and started again. ``table`` prints the tables and the
fitted curve, and draws ``results/reward_scaling.png`` and ``results/reward_baselines.png``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.results import FOLDER, kept, provenance
from benchmarks.reward_scaling.runs import PASSES, all_runs, parameters, sample, train
from benchmarks.reward_scaling.scorers import HeldOut
from benchmarks.reward_scaling.table import details, markdown, picture
from rlhf.data.movie_reviews import find_table, read_reviews, write_files
from rlhf.evaluation.reward import PairReport

RESULTS = FOLDER / "reward_scaling.jsonl"
PAIRINGS = 3
"""Pairs that every sentence is in."""


def run(folder: Path, quickstart: Path, seeds: int) -> int:
    """Everything that has no line yet."""
    if not (quickstart / "sft" / "model").is_dir():
        sys.stderr.write(
            f"benchmarks.reward_scaling: {quickstart}/sft is missing: bash launch/quickstart.sh first\n"
        )
        return 2
    if find_spec("sklearn") is None:
        sys.stderr.write(
            'benchmarks.reward_scaling: scikit-learn is missing: pip install -e ".[benchmarks]"\n'
        )
        return 2
    if not (folder / "data" / "preferences_test.jsonl").exists():
        write_files(read_reviews(find_table()), folder / "data", pairings=PAIRINGS, imdb=0, seed=0)
    torch.set_num_threads(1)
    held_out = HeldOut(folder / "data" / "preferences_test.jsonl", quickstart / "sft" / "model")
    facts = provenance(["python -m benchmarks.reward_scaling", *sys.argv[1:]], torch.device("cpu"))
    known = {(line["scorer"], line["comparisons"], line["seed"]) for line in kept(RESULTS)}

    def write(scorer: str, comparisons: int, seed: int, report: PairReport, more: Mapping[str, Any]) -> None:
        line = {"scorer": scorer, "comparisons": comparisons, "seed": seed, **more, **numbers(report)}
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | facts) + "\n")

    if ("vader", 0, 0) not in known:
        write("vader", 0, 0, held_out.of_vader(), {})
    for one in tqdm(all_runs(seeds)):
        scorer = f"{one.size} {one.start}"
        if (scorer, one.comparisons, one.seed) not in known:
            started = time.perf_counter()
            model = train(one, folder, quickstart)
            seconds = time.perf_counter() - started
            more = {"size": one.size, "start": one.start, "parameters": parameters(model), "seconds": seconds}
            write(scorer, one.comparisons, one.seed, held_out.of_model("reward", model), more)
        if ("bag of words", one.comparisons, one.seed) not in known:
            words = held_out.of_words(sample(one, folder))
            write("bag of words", one.comparisons, one.seed, words, {})
            known.add(("bag of words", one.comparisons, one.seed))
    return 0


def numbers(report: PairReport) -> dict[str, Any]:
    """What a line keeps of a report."""
    (found,), calibration, length = report.agreements, report.calibration, report.length
    return {
        "pairs": found.pairs,
        "accuracy": found.accuracy,
        "interval": [found.low, found.high],
        "tied": found.tied,
        "log_loss": calibration.log_loss.value,
        "ece": calibration.ece,
        "ece_calibrated": calibration.ece_calibrated,
        "bins": [asdict(one) for one in calibration.bins],
        "length_correlation": length.pearson,
        "by_length": [asdict(one) for one in length.groups],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reward_scaling", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser(
        "run", help="everything that has no line in results/reward_scaling.jsonl yet"
    )
    runner.add_argument("--seeds", type=int, default=3)
    runner.add_argument("--quickstart", type=Path, default=Path("runs/quickstart"))
    runner.add_argument("--scratch", type=Path, default=Path("runs/reward_scaling"))
    commands.add_parser("table", help="Markdown of the lines, and two pictures")
    given = parser.parse_args(arguments)
    if given.command == "run":
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        return run(given.scratch.resolve(), given.quickstart.resolve(), given.seeds)
    found = kept(RESULTS)
    if not found:
        sys.stderr.write(
            "benchmarks.reward_scaling: no results yet: python -m benchmarks.reward_scaling run\n"
        )
        return 2
    sys.stdout.write(markdown(found, list(PASSES)))
    picture(found, FOLDER / "reward_scaling.png")
    details(found, list(PASSES)[-1], FOLDER / "reward_baselines.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
