"""Accuracy by category, and by section as RewardBench weights it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from rlhf.data.categories import Division
from rlhf.evaluation.bootstrap import Bootstrap, Estimate, estimate, weighted_sum


@dataclass(kw_only=True, slots=True)
class Share:
    """How often the reward is right among some rows."""

    name: str
    rows: int
    accuracy: Estimate
    tied: float
    """Share of rows that a tie decides; they count as wrong."""


@dataclass(kw_only=True, slots=True)
class Breakdown:
    """Accuracy of every category, of every section, and over all."""

    categories: list[Share]
    sections: list[Share]
    """Mean of their categories, weighted; empty where each category is a section of its own."""
    mean: Share
    """Unweighted mean of the sections: what RewardBench ranks by."""


def breakdown(right: Tensor, tied: Tensor, division: Division, bootstrap: Bootstrap) -> Breakdown:
    """RewardBench's weighting (Lambert et al. 2024, section 4.1) with intervals.

        section = Σ_c w_c·accuracy_c / Σ_c w_c        overall = mean of the sections

    Rows are resampled within their categories, whose sizes are the benchmark's choice.

    Args:
        right: (N,) float, 1 where the row is right.
        tied: (N,) float, 1 where a tie decides.
        division: of the N rows.
        bootstrap: of all intervals.
    """
    parts = {
        name: Part(
            accuracy=float(right[rows].double().mean()),
            tied=float(tied[rows].double().mean()),
            resampled=bootstrap.means(right[rows], "category", name),
            rows=len(rows),
        )
        for name, rows in division.members.items()
    }
    return combined(parts, division)


@dataclass(kw_only=True, slots=True)
class Part:
    """A category's accuracy and its resamples (R,)."""

    accuracy: float
    tied: float
    resampled: Tensor
    rows: int


def combined(parts: Mapping[str, Part], division: Division) -> Breakdown:
    """Sections and their mean from the categories."""
    sections = {
        section: _mean([parts[name] for name in names], [division.weight(name) for name in names])
        for section, names in division.sections.items()
    }
    alone = all(names == [section] for section, names in division.sections.items())
    return Breakdown(
        categories=[_share(name, part) for name, part in parts.items()],
        sections=[] if alone else [_share(name, part) for name, part in sections.items()],
        mean=_share("mean", _mean(list(sections.values()), [1.0] * len(sections))),
    )


def _mean(parts: Sequence[Part], weights: Sequence[float]) -> Part:
    shares = [weight / sum(weights) for weight in weights]
    return Part(
        accuracy=sum(share * part.accuracy for share, part in zip(shares, parts, strict=True)),
        tied=sum(share * part.tied for share, part in zip(shares, parts, strict=True)),
        resampled=weighted_sum(shares, [part.resampled for part in parts]),
        rows=sum(part.rows for part in parts),
    )


def _share(name: str, part: Part) -> Share:
    return Share(name=name, rows=part.rows, accuracy=estimate(part.accuracy, part.resampled), tied=part.tied)
