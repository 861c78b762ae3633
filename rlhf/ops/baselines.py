"""Baselines from the other responses to the same prompt.

A group is the rows with equal ``group`` ids, in any order, all on one rank. Rows where ``counted`` is
False (responses without a token) belong to no group: they are not read and get 0. Statistics are float64
and taken from the group's lowest score, so that equal scores deviate by exactly 0 (numerics D37) and a
constant added to all scores changes nothing (D30).
"""

from __future__ import annotations

import torch
from torch import Tensor


def leave_one_out(scores: Tensor, group: Tensor, counted: Tensor) -> Tensor:
    """Each score minus the mean of the other scores of its group (Ahmadian et al. 2024; numerics D47).

        Aᵢ = Rᵢ − 1/(n−1)·Σ_{j≠i} Rⱼ = n/(n−1)·(Rᵢ − mean)

    Args:
        scores: (B,) one number per response.
        group: (B,) int64, equal numbers are responses to the same prompt.
        counted: (B,) bool, False for a row that belongs to no group.

    Returns:
        (B,) float64, 0 where not counted.

    Raises:
        ValueError: a group has a single counted response.
    """
    size = _sizes(group, counted, "leave_one_out")
    return _centred(scores, group, counted, size) * size / (size - 1).clamp(min=1)


def group_deviation(scores: Tensor, group: Tensor, counted: Tensor) -> Tensor:
    """Each score minus the mean of its group, its own included (numerics D49).

    Args:
        scores: (B,) one number per response.
        group: (B,) int64, equal numbers are responses to the same prompt.
        counted: (B,) bool, False for a row that belongs to no group.

    Returns:
        (B,) float64, 0 where not counted.

    Raises:
        ValueError: a group has a single counted response.
    """
    return _centred(scores, group, counted, _sizes(group, counted, "group_deviation"))


def group_std(scores: Tensor, group: Tensor, counted: Tensor) -> Tensor:
    """Unbiased standard deviation (ddof = 1) of the scores of each row's group (numerics D49).

    Args:
        scores: (B,) one number per response.
        group: (B,) int64, equal numbers are responses to the same prompt.
        counted: (B,) bool, False for a row that belongs to no group.

    Returns:
        (B,) float64, 0 where not counted.

    Raises:
        ValueError: a group has a single counted response.
    """
    size = _sizes(group, counted, "group_std")
    squares = _sums(_centred(scores, group, counted, size).square(), group)
    return torch.where(counted, (squares / (size - 1).clamp(min=1)).sqrt(), 0.0)


def unequal_groups(scores: Tensor, group: Tensor, counted: Tensor) -> Tensor:
    """Which rows belong to a group whose scores are not all equal (DAPO's dynamic sampling; numerics D50).

    A group of equal scores has no advantage: it carries no gradient and only dilutes the denominators.

    Args:
        scores: (B,) one number per response, as the estimator sees it.
        group: (B,) int64, equal numbers are responses to the same prompt.
        counted: (B,) bool, False for a row that belongs to no group; its score is not read.

    Returns:
        (B,) bool, the same for all rows of a group, those that are not counted included.
    """
    lowest, highest = _lowest(scores, group, counted), -_lowest(-scores, group, counted)
    return lowest < highest


def _centred(scores: Tensor, group: Tensor, counted: Tensor, size: Tensor) -> Tensor:
    excess = torch.where(counted, scores - _lowest(scores, group, counted), 0.0)
    return torch.where(counted, excess - _sums(excess, group) / size.clamp(min=1), 0.0)


def _sizes(group: Tensor, counted: Tensor, name: str) -> Tensor:
    """(B,) float64 counted responses in each row's group; no counted row may be alone."""
    size = _sums(counted.double(), group)
    alone = counted & (size == 1)
    if alone.any():
        raise ValueError(f"{name}: group {int(group[alone][0])} has 1 response, needs at least 2")
    return size


def _sums(x: Tensor, group: Tensor) -> Tensor:
    """(B,) float64 sum of ``x`` over each row's group."""
    ids, row_to_id = group.unique(return_inverse=True)
    sums = torch.zeros(len(ids), dtype=torch.float64, device=x.device)
    return sums.index_add(0, row_to_id, x.double())[row_to_id]


def _lowest(scores: Tensor, group: Tensor, counted: Tensor) -> Tensor:
    """(B,) float64 lowest counted score of each row's group, inf in a group without one."""
    ids, row_to_id = group.unique(return_inverse=True)
    lowest = torch.full((len(ids),), torch.inf, dtype=torch.float64, device=scores.device)
    candidates = torch.where(counted, scores.double(), torch.inf)
    return lowest.scatter_reduce(0, row_to_id, candidates, "amin")[row_to_id]
