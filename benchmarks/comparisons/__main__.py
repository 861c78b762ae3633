"""Ties and rankings on a known truth: python -m benchmarks.comparisons run; table."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.comparisons import rankings, ties
from benchmarks.results import FOLDER, kept, mean_and_error, provenance

RESULTS = FOLDER / "comparisons.jsonl"
COMPARISONS = (100, 300, 1000)
DROPPED = "Bradley–Terry, ties dropped"


def run(seeds: int) -> int:
    """Both experiments with every size and seed that has no line yet."""
    known = {
        (line["experiment"], line.get("prompts", line.get("comparisons")), line["seed"])
        for line in kept(RESULTS)
    }
    jobs: list[tuple[str, Any, int, int]] = [
        *(("ties", ties.measured, size, seed) for size in COMPARISONS for seed in range(seeds)),
        *(("rankings", rankings.measured, size, seed) for size in rankings.PROMPTS for seed in range(seeds)),
    ]
    facts = provenance(["python -m benchmarks.comparisons", *sys.argv[1:]], torch.device("cpu"))
    for _, measure, size, seed in tqdm([job for job in jobs if (job[0], job[2], job[3]) not in known]):
        lines = [json.dumps(line | facts) + "\n" for line in measure(size, seed)]
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
    return 0


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown of both experiments, means over seeds with their standard errors."""
    return "\n\n".join(
        [
            _ties([line for line in lines if line["experiment"] == "ties"]),
            _rankings([line for line in lines if line["experiment"] == "rankings"]),
        ]
    )


def _ties(lines: list[dict[str, Any]]) -> str:
    share = sum(line["tie_share"] for line in lines) / len(lines)
    sizes = sorted({line["comparisons"] for line in lines})
    rows = [
        f"Nats per held-out comparison above the truth's own; {share:.0%} are ties.\n",
        "| loss | " + " | ".join(f"{size}: all outcomes | {size}: winners" for size in sizes) + " |",
        "|---" * (1 + 2 * len(sizes)) + "|",
    ]
    for loss in ties.LOSSES:
        cells = []
        for size in sizes:
            of = [line for line in lines if (line["loss"], line["comparisons"]) == (loss, size)]
            cells.append(_shown([line["nats"] - line["floor"] for line in of], 4))
            cells.append(_shown([line["nats_decided"] for line in of], 4))
        rows.append(f"| {loss} | " + " | ".join(cells) + " |")
    cells = []
    for size in sizes:
        for measure in ("nats", "nats_decided"):
            of = {
                (line["loss"], line["seed"]): line[measure] for line in lines if line["comparisons"] == size
            }
            pairs = [(of[DROPPED, seed], of["Davidson", seed]) for loss, seed in of if loss == DROPPED]
            cells.append(_shown([dropped - modelled for dropped, modelled in pairs], 4))
    rows.append("| dropped less Davidson, seed by seed | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _rankings(lines: list[dict[str, Any]]) -> str:
    def accuracies(kind: str, prompts: int) -> list[float]:
        return [line["accuracy"] for line in lines if (line["kind"], line["prompts"]) == (kind, prompts)]

    sizes = sorted({line["prompts"] for line in lines})
    pairs = {size: mean_and_error(accuracies("pairs", size))[0] for size in sizes}
    rows = [
        "Share of held-out pairs ordered as the truth orders them; prompts with a pair that are as good.\n",
        "| prompts | " + " | ".join(rankings.KINDS) + " | pairs as good as rankings |",
        "|---" * (2 + len(rankings.KINDS)) + "|",
    ]
    for size in sizes:
        cells = [_shown(accuracies(kind, size), 4) for kind in rankings.KINDS]
        needed = rankings.pairs_needed(mean_and_error(accuracies("rankings of 4", size))[0], pairs)
        rows.append(f"| {size} | {' | '.join(cells)} | {'–' if needed is None else f'{needed:.0f}'} |")
    return "\n".join(rows)


def _shown(values: list[float], digits: int) -> str:
    mean, error = mean_and_error(values)
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.comparisons", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="everything that has no line in results/comparisons.jsonl yet")
    runner.add_argument("--seeds", type=int, default=20)
    commands.add_parser("table", help="Markdown of results/comparisons.jsonl")
    given = parser.parse_args(arguments)
    if given.command == "run":
        return run(given.seeds)
    found = kept(RESULTS)
    if not found:
        sys.stderr.write("benchmarks.comparisons: no results yet: python -m benchmarks.comparisons run\n")
        return 2
    sys.stdout.write(table(found) + "\n")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
