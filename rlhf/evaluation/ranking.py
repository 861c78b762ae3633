"""Arms ranked from their comparisons: scores, winners, table, picture."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.data.outcomes import Comparison
from rlhf.evaluation.annotators import AnnotatorAgreement
from rlhf.evaluation.plots import pyplot, save
from rlhf.evaluation.report import markdown
from rlhf.ops.ranking import (
    borda_scores,
    bradley_terry_mle,
    condorcet_winner,
    copeland_scores,
    highest,
    preference_matrix,
    win_counts,
)


@dataclass(kw_only=True, slots=True)
class Arm:
    """One arm and its place by every rule."""

    arm: str
    score: float
    """Bradley–Terry, nats from the mean of all arms."""
    error: float
    """Standard error of the score, from the Fisher information."""
    borda: float
    """Mean probability of being preferred to another arm."""
    copeland: float
    """Arms that it is preferred to, minus arms preferred to it."""
    comparisons: float


@dataclass(kw_only=True, slots=True)
class Ranking:
    """Arms by falling score, and who wins by which rule."""

    arms: list[Arm]
    covariance: list[list[float]]
    """Of the scores, in the order of ``arms``."""
    preferences: list[list[float | None]]
    """Share of the comparisons in which the arm of the row was preferred to that of the column."""
    condorcet: str | None
    copeland: list[str]
    borda: list[str]
    never_compared: int
    """Pairs of arms."""


def ranked(comparisons: Sequence[Comparison], *, ridge: float) -> Ranking:
    """The arms of all comparisons.

    Raises:
        ValueError: comparisons do not connect them, or, without a ridge, some never lost to the others.
    """
    names = sorted({name for one in comparisons for name in (one.a, one.b)})
    wins = _wins(comparisons, names)
    scores, covariance = bradley_terry_mle(wins, ridge=ridge, names=names)
    preferences = preference_matrix(wins)
    borda, copeland = borda_scores(preferences), copeland_scores(preferences)
    winner = condorcet_winner(preferences)
    order = scores.argsort(descending=True, stable=True)
    arms = [
        Arm(
            arm=names[i],
            score=float(scores[i]),
            error=float(covariance[i, i].sqrt()),
            borda=float(borda[i]),
            copeland=float(copeland[i]),
            comparisons=float(wins[i].sum() + wins[:, i].sum()),
        )
        for i in order.tolist()
    ]
    return Ranking(
        arms=arms,
        covariance=covariance[order][:, order].tolist(),
        preferences=[[_or_none(share) for share in row] for row in preferences[order][:, order].tolist()],
        condorcet=None if winner is None else names[winner],
        copeland=[names[i] for i in highest(copeland)],
        borda=[names[i] for i in highest(borda)],
        never_compared=int(preferences.isnan().sum() - len(names)) // 2,
    )


def ranking_table(ranking: Ranking) -> str:
    """One row an arm, the best first, and who wins by which rule below."""
    head = ["arm", "score", "Borda", "Copeland", "comparisons"]
    rows = [
        [
            one.arm,
            f"{one.score:+.3f} ± {one.error:.3f}",
            f"{one.borda:.3f}",
            f"{one.copeland:+.0f}",
            f"{one.comparisons:g}",
        ]
        for one in ranking.arms
    ]
    lines = [
        f"Condorcet winner: {ranking.condorcet or 'none, no arm is preferred to every other one'}",
        f"Copeland winner: {', '.join(ranking.copeland)}",
        f"Borda winner: {', '.join(ranking.borda)}",
    ]
    if ranking.never_compared:
        lines.append(f"Pairs of arms never compared, which count for no rule: {ranking.never_compared}")
    return markdown([head, *rows]) + "\n\n" + "\n".join(lines)


def write_ranking(file: Path, ranking: Ranking, found: AnnotatorAgreement | None) -> None:
    """Everything in the tables and behind them."""
    content = asdict(ranking) | {"agreement": None if found is None else asdict(found)}
    file.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def ranking_picture(picture: Path, ranking: Ranking) -> None:
    """Left, scores with their 95 % intervals; right, the share of comparisons that the row's arm won."""
    figure, (left, right) = pyplot().subplots(
        1, 2, figsize=(10, 1.6 + 0.35 * max(len(ranking.arms), 6)), constrained_layout=True
    )
    names, places = [one.arm for one in ranking.arms], range(len(ranking.arms))
    reach = [1.959964 * one.error for one in ranking.arms]
    left.errorbar([one.score for one in ranking.arms], places, xerr=reach, fmt="o", capsize=3)
    left.set_yticks(places, names)
    left.invert_yaxis()
    left.set_xlabel("Bradley–Terry score, nats, with 95 % interval")
    left.grid(alpha=0.3)
    shares: Any = [[float("nan") if one is None else one for one in row] for row in ranking.preferences]
    right.set_facecolor("0.85")  # never compared
    image = right.imshow(shares, cmap="RdBu", vmin=0, vmax=1, aspect="auto")
    right.set_yticks(places, names)
    right.set_xticks(places, names, rotation=90)
    figure.colorbar(image, ax=right, label="preferred to the column's arm")
    save(figure, picture)


def _wins(comparisons: Sequence[Comparison], names: Sequence[str]) -> Tensor:
    number = {name: i for i, name in enumerate(names)}
    first, second = (torch.tensor([number[getattr(one, side)] for one in comparisons]) for side in ("a", "b"))
    label, count = (
        torch.tensor([getattr(one, name) for one in comparisons], dtype=torch.float64)
        for name in ("label", "count")
    )
    return win_counts(first, second, label, count, arms=len(names))


def _or_none(number: float) -> float | None:
    return None if math.isnan(number) else number
