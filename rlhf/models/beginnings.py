"""Rows that begin alike: the responses to one prompt, the two sides of a pair, texts under one template.

What two rows have in common from their first token on has the same states in both, so one of them runs it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

LEAST = 8
"""Common tokens below which a row runs by itself: putting its states together would cost more."""


class Beginning(NamedTuple):
    """How a row begins."""

    leader: int
    """A row that runs whole and begins alike; the row itself where there is none."""
    same: int
    """Tokens that they have in common, fewer than the row's own; 0 where there is no leader."""


def beginnings(rows: list[list[int]]) -> list[Beginning]:
    """For each row, a row to begin like.

    Rows are taken in dictionary order, where those that begin alike are neighbours. One that the next row
    follows for over twice as long as it follows its leader leads anew.

    Args:
        rows: tokens of each, none empty.
    """
    order = sorted(range(len(rows)), key=rows.__getitem__)
    found = [Beginning(row, 0) for row in range(len(rows))]
    near = [*_common([rows[row] for row in order]), 0]  # of each and the next in order
    leader, same = order[0], near[0]  # same: of the leader and the row in turn
    for place in range(1, len(order)):
        row = order[place]
        if same < LEAST or near[place] > 2 * same:
            leader, same = row, near[place]
            continue
        found[row] = Beginning(leader, min(same, len(rows[row]) - 1))
        same = min(same, near[place])
    return found


def _common(rows: list[list[int]]) -> list[int]:
    """Tokens from the first on that each row and the next one have in common."""
    return [
        next(
            (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
        )
        for one, other in pairwise(rows)
    ]


class Places(NamedTuple):
    """Where the states of N tokens stand, when only some of them are run."""

    run: Tensor
    """(N,) bool, the tokens that are."""
    place: Tensor
    """(N,) int64 place of each token's state among those."""


def places(lengths: list[int], begun: list[Beginning]) -> Places:
    """Of rows that stand end to end.

    Args:
        lengths: tokens of each row.
        begun: how each begins.
    """
    leader, same = torch.tensor(begun).unbind(1)
    length = torch.tensor(lengths)
    own = length - same
    start = own.cumsum(0) - own  # of each row's own tokens, among those that are run
    row = torch.arange(len(lengths)).repeat_interleave(length)
    column = torch.arange(len(row)) - (length.cumsum(0) - length)[row]
    run = column >= same[row]
    return Places(run, torch.where(run, start[row] - same[row], start[leader[row]]) + column)
