"""How far those who compared agree with each other."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch

from rlhf.data.outcomes import Comparison
from rlhf.evaluation.report import markdown
from rlhf.ops.agreement import cohen_kappa, fleiss_kappa, krippendorff_alpha

SHOWN = 10
"""Pairs of annotators in the table; the JSON file has all."""


@dataclass(kw_only=True, slots=True)
class AgreementOfTwo:
    """Two annotators on the items that both judged."""

    first: str
    second: str
    items: int
    agreed: float
    """Share of the items."""
    cohen: float | None


@dataclass(kw_only=True, slots=True)
class AnnotatorAgreement:
    """How far annotators agree; None where it cannot be said."""

    items: int
    """Judged by two annotators or more."""
    repeated: int
    """Judgements of an item that its annotator had judged before; the first alone counts."""
    fleiss: float | None
    """None also where items have unequal numbers of annotators."""
    alpha: float | None
    """Krippendorff's, every two outcomes equally far apart."""
    alpha_interval: float | None
    """Krippendorff's, a tie half way between the two sides."""
    pairs: list[AgreementOfTwo]


def agreement(comparisons: Sequence[Comparison]) -> AnnotatorAgreement | None:
    """Of the annotators that rows name; None where no item was judged by two.

    Raises:
        ValueError: an outcome is neither side nor a tie, but a share.
    """
    judged, repeated = _judged(comparisons)
    shared = [labels for labels in judged.values() if len(labels) > 1]
    if not shared:
        return None
    counts = torch.tensor([[Counter(labels.values())[c] for c in range(3)] for labels in shared])
    raters = counts.sum(1)
    interval = torch.tensor([[0.0, 1.0, 4.0], [1.0, 0.0, 1.0], [4.0, 1.0, 0.0]])
    return AnnotatorAgreement(
        items=len(shared),
        repeated=repeated,
        fleiss=_or_none(fleiss_kappa(counts)) if bool((raters == raters[0]).all()) else None,
        alpha=_or_none(krippendorff_alpha(counts)),
        alpha_interval=_or_none(krippendorff_alpha(counts, interval)),
        pairs=_twos(shared),
    )


def annotator_table(found: AnnotatorAgreement) -> str:
    """One row for every two annotators, those with the most items first, and the measures of all below."""
    rows = [
        [f"{one.first}, {one.second}", str(one.items), f"{one.agreed:.3f}", _shown(one.cohen)]
        for one in found.pairs[:SHOWN]
    ]
    lines = [
        f"{found.items} items judged by two or more: Fleiss' kappa {_shown(found.fleiss)}, "
        f"Krippendorff's alpha {_shown(found.alpha)}, with ties half way {_shown(found.alpha_interval)}"
    ]
    if found.repeated:
        lines.append(f"Judgements that repeat an annotator's own, left out here: {found.repeated}")
    return markdown([["annotators", "items", "agreed", "Cohen's kappa"], *rows]) + "\n\n" + "\n".join(lines)


def _judged(comparisons: Sequence[Comparison]) -> tuple[dict[tuple[str, ...], dict[str, int]], int]:
    """Of each item the category that each annotator chose: 0 for the arm first by name, 1 for a tie, 2."""
    judged: dict[tuple[str, ...], dict[str, int]] = defaultdict(dict)
    repeated = 0
    for one in comparisons:
        if one.annotator is None:
            continue
        if one.label not in (0, 1 / 2, 1):
            raise ValueError(
                f"{one.where}: an outcome of {one.label:g} is no single annotator's, "
                "which would be 1, 0.5 or 0; leave the annotators out"
            )
        label = one.label if one.a < one.b else 1 - one.label
        labels = judged[one.item, *sorted((one.a, one.b))]
        repeated += one.annotator in labels
        labels.setdefault(one.annotator, round(2 * (1 - label)))
    return judged, repeated


def _twos(shared: Sequence[dict[str, int]]) -> list[AgreementOfTwo]:
    """Every two annotators with items in common."""
    labels: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for item in shared:
        for first, second in combinations(sorted(item), 2):
            labels[first, second].append((item[first], item[second]))
    found = [
        AgreementOfTwo(
            first=first,
            second=second,
            items=len(both),
            agreed=sum(one == other for one, other in both) / len(both),
            cohen=_or_none(cohen_kappa(*torch.tensor(both).unbind(1))),
        )
        for (first, second), both in labels.items()
    ]
    return sorted(found, key=lambda one: (-one.items, one.first, one.second))


def _or_none(number: float) -> float | None:
    return None if math.isnan(number) else number


def _shown(number: float | None) -> str:
    return "–" if number is None else f"{number:.3f}"
