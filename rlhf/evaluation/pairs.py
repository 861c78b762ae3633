"""How often a scorer ranks human-labelled pairs as the humans did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class Agreement:
    """Strict pairwise accuracy (numerics D26) with its 95 % interval."""

    scorer: str
    pairs: int
    accuracy: float
    """Share of pairs whose chosen response scores strictly higher."""
    low: float
    high: float
    tied: float
    """Share of pairs with equal scores; they count as wrong."""


def agreement(scorer: str, chosen: Sequence[float], rejected: Sequence[float]) -> Agreement:
    """Compare the scores of the better responses with those of the others, pair by pair.

    Raises:
        ValueError: no pairs, or not the same number on both sides.
    """
    if len(chosen) != len(rejected) or not chosen:
        raise ValueError(f"{scorer}: {len(chosen)} chosen and {len(rejected)} rejected scores")
    wins = sum(better > worse for better, worse in zip(chosen, rejected, strict=True))
    ties = sum(better == worse for better, worse in zip(chosen, rejected, strict=True))
    low, high = wilson_interval(wins, len(chosen))
    return Agreement(
        scorer=scorer,
        pairs=len(chosen),
        accuracy=wins / len(chosen),
        low=low,
        high=high,
        tied=ties / len(chosen),
    )


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927); ``z`` = 1.96 covers 95 %."""
    share = successes / trials
    shrink = 1 + z**2 / trials
    centre = (share + z**2 / (2 * trials)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return centre - half, centre + half
