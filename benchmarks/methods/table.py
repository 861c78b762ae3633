"""Table and picture: means over seeds with their standard errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import mean_and_error

COLUMNS = {
    "score": ("score", 2),
    "kl": ("KL, nats", 2),
    "judge": ("VADER", 3),
    "distinct_2": ("distinct-2", 3),
    "length": ("length", 1),
    "perplexity": ("perplexity", 1),
}
Lines = Sequence[Mapping[str, Any]]


def markdown(lines: Lines) -> str:
    """A row a policy, the highest score first."""
    head = ["policy", *(title for title, _ in COLUMNS.values())]
    rows = [[name, *(cell(own, key) for key in COLUMNS)] for name, own in ranked(lines)]
    seeds = len({line["seed"] for line in lines})
    title = f"{lines[0]['responses']} unseen prompts, temperature 1, {seeds} seeds, mean ± standard error"
    table = [head, ["---"] * len(head), *rows]
    return f"**{title}**\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in table)


def ranked(lines: Lines) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The lines of each policy, the highest mean score first."""
    names = dict.fromkeys(line["policy"] for line in lines)
    found = [(name, [line for line in lines if line["policy"] == name]) for name in names]
    return sorted(found, key=lambda item: -mean_and_error([line["score"] for line in item[1]])[0])


def cell(own: Lines, key: str) -> str:
    """Mean ± standard error over seeds; a bound where the KL is one, – where nothing was measured."""
    numbers = [line[key] for line in own if line.get(key) is not None]
    if not numbers:
        return "–"
    digits, (mean, error) = COLUMNS[key][1], mean_and_error(numbers)
    if key == "kl" and all(line.get("kl_error") is None for line in own):
        return f"≤ {mean:.{digits}f}"
    if len(numbers) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def mean_of(own: Lines, key: str) -> tuple[float, float]:
    """Over seeds, and its standard error."""
    return mean_and_error([line[key] for line in own])


def frontier(lines: Lines, picture: Path) -> None:
    """Score against KL, a point a policy, with standard errors both ways."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 5), constrained_layout=True)
    points = [(mean_of(own, "kl"), mean_of(own, "score"), name) for name, own in ranked(lines)]
    for number, ((kl, kl_error), (score, score_error), name) in enumerate(sorted(points)):
        axis.errorbar(kl, score, yerr=score_error, xerr=kl_error, fmt="o", markersize=4)
        beside = (5, -11 if number % 2 else 4)  # neighbours on either side of their points
        axis.annotate(name, (kl, score), xytext=beside, textcoords="offset points", fontsize=8)
    axis.set_xlabel("KL to the supervised model, nats a response")
    axis.set_ylabel("score of the reward model")
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
