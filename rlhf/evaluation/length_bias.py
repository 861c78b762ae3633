"""Whether a reward likes length: accuracy by the difference of lengths, correlation of reward and length."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.evaluation.bootstrap import Bootstrap, Estimate

GROUPS = 5
"""Of pairs by the difference of their lengths, as equal as equal differences allow."""


@dataclass(kw_only=True, slots=True)
class LengthGroup:
    """Pairs whose chosen response is longer by so many tokens."""

    low: int
    """Least difference chosen − rejected, tokens."""
    high: int
    """Greatest."""
    pairs: int
    accuracy: Estimate
    """Strict (numerics D26)."""


@dataclass(kw_only=True, slots=True)
class LengthProbe:
    """What length explains of a reward, and of the labels."""

    groups: list[LengthGroup]
    """From pairs whose chosen response is much shorter to those where it is much longer."""
    pearson: float | None
    """Correlation of score and length over all responses of both sides; None where one never varies."""
    spearman: float | None
    """The same of their ranks."""
    pearson_difference: float | None
    """Correlation of r_chosen − r_rejected with the difference of lengths, over pairs."""
    longer_chosen: float
    """Share of pairs whose chosen response is longer: the accuracy of length itself as a reward."""


def length_probe(
    chosen: Tensor, rejected: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor, bootstrap: Bootstrap
) -> LengthProbe:
    """Probe a reward's scores for length.

    Args:
        chosen: (N,) scores of the better responses.
        rejected: (N,) of the others.
        chosen_lengths: (N,) int64 tokens of the better responses.
        rejected_lengths: (N,) of the others.
        bootstrap: of the accuracies.
    """
    longer = chosen_lengths - rejected_lengths
    scores, lengths = torch.cat([chosen, rejected]), torch.cat([chosen_lengths, rejected_lengths])
    return LengthProbe(
        groups=_groups((chosen > rejected).double(), longer, bootstrap),
        pearson=correlation(scores, lengths),
        spearman=correlation(ranks(scores), ranks(lengths)),
        pearson_difference=correlation(chosen - rejected, longer),
        longer_chosen=float((longer > 0).double().mean()),
    )


def correlation(x: Tensor, y: Tensor) -> float | None:
    """Pearson's r of two (N,) samples; None where one of them does not vary."""
    x, y = (values.double() - values.double().mean() for values in (x, y))
    scale = float((x.square().sum() * y.square().sum()).sqrt())
    return float((x * y).sum()) / scale if scale > 0 else None


def ranks(values: Tensor) -> Tensor:
    """(N,) float64 ranks from 1; equal values share the mean of theirs."""
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[place]


def _groups(right: Tensor, longer: Tensor, bootstrap: Bootstrap) -> list[LengthGroup]:
    levels = torch.arange(1, GROUPS) / GROUPS
    edges = torch.quantile(longer.double(), levels.double(), interpolation="lower").unique()
    group = torch.bucketize(longer.double(), edges)  # an edge belongs to the group below it
    found = []
    for number in group.unique().tolist():
        own = group == number
        low, high = longer[own].aminmax()
        accuracy = bootstrap.mean(right[own], "length", number)
        found.append(LengthGroup(low=int(low), high=int(high), pairs=int(own.sum()), accuracy=accuracy))
    return found
