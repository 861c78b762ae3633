"""How score and judge rise with n: N samples a prompt give the expected best of every n up to N."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlhf.evaluation.policies import Response
from rlhf.ops.best_of_n import best_of_n_curve, best_of_n_kl_bound


@dataclass(kw_only=True, slots=True)
class BestOfN:
    """What the best of n responses is expected to be worth."""

    n: int
    score: float
    score_error: float
    """Standard error over prompts, as of the judge."""
    judge: float | None
    judge_error: float | None
    kl_bound: float
    """log n − (n−1)/n, nats."""


def best_of_n(responses: Sequence[Response], samples: int) -> list[BestOfN]:
    """The curve for n = 1 … ``samples``, unbiased (numerics D54); the score chooses, and the judge follows.

    Args:
        responses: those to one prompt in succession, ``samples`` each.
        samples: N.

    Raises:
        ValueError: there is one prompt only.
    """
    scores = torch.tensor([one.score for one in responses], dtype=torch.float64).reshape(-1, samples)
    curve = zip(*(column.tolist() for column in best_of_n_curve(scores)), strict=True)
    judged = [one.judge for one in responses if one.judge is not None]
    verdicts: list[tuple[float | None, float | None]] = [(None, None)] * samples
    if judged:
        worth = torch.tensor(judged, dtype=torch.float64).reshape(-1, samples)
        verdicts = list(zip(*(column.tolist() for column in best_of_n_curve(scores, worth)), strict=True))
    return [
        BestOfN(
            n=n,
            score=score,
            score_error=error,
            judge=judge,
            judge_error=judge_error,
            kl_bound=best_of_n_kl_bound(n),
        )
        for n, ((score, error), (judge, judge_error)) in enumerate(zip(curve, verdicts, strict=True), 1)
    ]
