"""One order of four responses, or one pair, to each labelled prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from benchmarks.comparisons.ties import gaps
from benchmarks.comparisons.truth import Truth, fitted, judged_orders
from rlhf.algorithms.preferences import BestResponse, BradleyTerry, RewardLoss

KINDS: dict[str, tuple[int, RewardLoss]] = {
    "pairs": (2, BradleyTerry()),
    "rankings of 4": (4, BradleyTerry()),
    "best of 4": (4, BestResponse()),
}
"""Responses to a prompt, and the loss."""
PROMPTS = (25, 50, 100, 200, 400, 800, 1600)
HELD_OUT = 20_000


def measured(prompts: int, seed: int) -> list[dict[str, Any]]:
    """Every kind of label with so many prompts: how often the scores order two responses rightly."""
    truth = Truth.drawn(seed)
    held_out = truth.responses(HELD_OUT, 2)
    found = []
    for kind, (responses, loss) in KINDS.items():
        features = truth.responses(prompts, responses)
        weight = fitted(loss, features, judged_orders(truth.order(features)))
        right = (gaps(weight, held_out) > 0) == (gaps(truth.weight, held_out) > 0)
        accuracy = float(right.double().mean())
        line = {"experiment": "rankings", "kind": kind, "prompts": prompts, "seed": seed}
        found.append(line | {"accuracy": accuracy})
    return found


def pairs_needed(accuracy: float, pairs: Mapping[int, float]) -> float | None:
    """Prompts with one pair each that reach an accuracy; None beyond the largest number measured.

    Args:
        accuracy: wanted.
        pairs: mean accuracy by number of prompts; log(number) is interpolated between neighbours.
    """
    counts = sorted(pairs)
    for low, high in pairwise(counts):
        if pairs[low] <= accuracy <= pairs[high]:
            share = (accuracy - pairs[low]) / (pairs[high] - pairs[low])
            return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return None
