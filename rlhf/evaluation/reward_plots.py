"""Pictures of a reward: is it calibrated, does it like length, where is it right?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf.evaluation.calibration import Calibration
from rlhf.evaluation.candidates import CandidateReport
from rlhf.evaluation.categories import Breakdown, Share
from rlhf.evaluation.length_bias import LengthProbe
from rlhf.evaluation.plots import pyplot, save
from rlhf.evaluation.reward import PairReport

DOTS = 2000
"""Responses of each side that are drawn as dots, at most."""


def reward_picture(picture: Path, pairs: PairReport | None, candidates: CandidateReport | None) -> None:
    """A panel for everything that was measured."""
    panels: list[Any] = []
    if pairs is not None:
        panels += [
            lambda axis: reliability(axis, pairs.calibration),
            lambda axis: by_length(axis, pairs.length),
            lambda axis: against_length(axis, pairs),
        ]
        if pairs.breakdown is not None:
            panels.append(lambda axis: categories(axis, pairs.breakdown, "accuracy on pairs"))
    if candidates is not None:
        panels.append(lambda axis: categories(axis, candidates.breakdown, "right among candidates"))
    figure, axes = pyplot().subplots(
        1, len(panels), figsize=(4.4 * len(panels), 3.9), squeeze=False, constrained_layout=True
    )
    for axis, draw in zip(axes.flat, panels, strict=True):
        draw(axis)
        axis.grid(alpha=0.3)
    save(figure, picture)


def reliability(axis: Any, found: Calibration) -> None:
    """Accuracy against confidence; the diagonal is a calibrated reward, the bars say how many pairs."""
    filled = [one for one in found.bins if one.pairs]
    total = sum(one.pairs for one in filled)
    axis.bar(
        [(one.low + one.high) / 2 for one in found.bins],
        [one.pairs / total for one in found.bins],
        width=0.045,
        color="lightgrey",
        label="share of pairs",
    )
    axis.plot([0.5, 1], [0.5, 1], "--", color="grey", linewidth=1, label="calibrated")
    axis.plot([one.confidence for one in filled], [one.accuracy for one in filled], "o-", label="reward")
    axis.set_xlim(0.48, 1.02)
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("confidence σ(|Δr|)")
    axis.set_ylabel("accuracy")
    axis.set_title(f"calibration: ECE {found.ece:.3f}", fontsize=10)
    axis.legend(fontsize=8, loc="upper left")


def by_length(axis: Any, found: LengthProbe) -> None:
    """Accuracy of groups of pairs by the difference of their lengths."""
    places = range(len(found.groups))
    values = [one.accuracy.value for one in found.groups]
    reach = list(zip(*(one.accuracy.reach for one in found.groups), strict=True))
    axis.errorbar(places, values, yerr=reach, fmt="o", capsize=3)
    axis.axhline(0.5, linestyle="--", color="grey", linewidth=1)
    axis.set_xticks(places, [f"{one.low:+d} … {one.high:+d}" for one in found.groups], rotation=20)
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("chosen longer by, tokens")
    axis.set_ylabel("accuracy")
    axis.set_title("accuracy by difference of length", fontsize=10)


def against_length(axis: Any, report: PairReport) -> None:
    """Score against length, a dot a response."""
    name = report.agreements[0].scorer
    for scores, lengths, label in zip(
        (report.chosen[name], report.rejected[name]), report.lengths, ("chosen", "rejected"), strict=True
    ):
        axis.plot(lengths[:DOTS], scores[:DOTS], ".", markersize=3, alpha=0.4, label=label)
    pearson = report.length.pearson
    said = "–" if pearson is None else f"{pearson:+.2f}"
    axis.set_xlabel("response, tokens")
    axis.set_ylabel("score")
    axis.set_title(f"score against length: r = {said}", fontsize=10)
    axis.legend(fontsize=8)


def categories(axis: Any, found: Breakdown, title: str) -> None:
    """Accuracy of every category, section and the mean, with intervals."""
    groups: list[tuple[str, Sequence[Share]]] = [
        ("tab:blue", found.categories),
        ("tab:orange", found.sections),
        ("black", [found.mean]),
    ]
    shares = [(colour, one) for colour, part in groups for one in part]
    for place, (colour, one) in enumerate(shares):
        ends = [[end] for end in one.accuracy.reach]
        axis.errorbar(one.accuracy.value, place, xerr=ends, fmt="o", color=colour, capsize=2)
    axis.set_yticks(range(len(shares)), [one.name for _, one in shares], fontsize=7)
    axis.invert_yaxis()
    axis.set_xlim(min(0.0, *(one.accuracy.low for _, one in shares)), 1.02)
    axis.set_xlabel("accuracy")
    axis.set_title(title, fontsize=10)
