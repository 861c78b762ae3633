"""What comparisons of K arms say: Bradley–Terry scores with their errors, and who wins by which rule.

An arm is whatever is compared, such as a policy or a response. Everything is float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

STEPS = 200
"""Most steps of Newton's method; it needs about one for each nat of the largest gap, and a few more."""
TOLERANCE: float = 1e-12
"""Largest derivative at the end, and rounding of the loss, in shares of all comparisons."""
SHOWN = 10
"""Arms of a set that an error names."""


def win_counts(first: Tensor, second: Tensor, label: Tensor, count: Tensor, *, arms: int) -> Tensor:
    """How often each arm was preferred to each other one, a tie counting half for both.

    Args:
        first: (N,) int64 arm of each comparison.
        second: (N,) int64 the other arm.
        label: (N,) μ: 1 where the first was preferred, ½ for a tie, 0 where the second was; a share between.
        count: (N,) how often that was the outcome.
        arms: K.

    Returns:
        (K, K) float64; entry (i, j) counts i over j.
    """
    wins = torch.zeros(arms, arms, dtype=torch.float64)
    wins.index_put_((first, second), count.double() * label.double(), accumulate=True)
    wins.index_put_((second, first), count.double() * (1 - label.double()), accumulate=True)
    return wins


# Bradley–Terry


def bradley_terry_mle(
    wins: Tensor, *, ridge: float = 0.0, names: Sequence[str] | None = None
) -> tuple[Tensor, Tensor]:
    """Maximum likelihood of P(i ≻ j) = σ(rᵢ − rⱼ), by Newton's method (Bradley and Terry 1952; numerics E8).

        r = argmin −Σᵢⱼ winsᵢⱼ·log σ(rᵢ − rⱼ) + ridge/2·Σᵢ rᵢ²,   Σᵢ rᵢ = 0
        covariance = pinv(Σᵢ<ⱼ nᵢⱼ·pᵢⱼ(1 − pᵢⱼ)·(eᵢ − eⱼ)(eᵢ − eⱼ)ᵀ),   n = wins + winsᵀ

    The covariance is the inverse of the Fisher information; with a ridge, of information plus prior. A tie is
    half a win for both, which varies less than a comparison without ties: errors are then too large, not too
    small.

    Args:
        wins: (K, K) how often each arm was preferred to each other one; its diagonal is not read.
        ridge: precision of a Gaussian prior around 0 of each score, nats⁻²; 0 for maximum likelihood.
        names: of the arms, for errors; their numbers when None.

    Returns:
        scores: (K,) float64 nats, of mean 0.
        covariance: (K, K) float64 of the scores around their mean.

    Raises:
        ValueError: no comparison connects some arms with the others; or, without a ridge, some arms never
            lost to the others, so that the maximum lies at infinity. Names both sets.
    """
    wins = _without_diagonal(wins)
    _expect_connected(wins, names)
    if ridge == 0:
        _expect_finite_maximum(wins, names)
    scores = torch.zeros(len(wins), dtype=torch.float64)
    for _ in range(STEPS):
        slope = _slope(wins, scores, ridge)
        curvature = _information(wins, scores) + ridge * torch.eye(len(wins), dtype=torch.float64)
        inverse = _inverse_beside_the_mean(curvature)
        if slope.abs().max() <= TOLERANCE * wins.sum():
            return scores - scores.mean(), inverse
        scores = _downhill(wins, scores, inverse @ slope, ridge)
    raise ValueError(f"bradley_terry_mle: not at the maximum after {STEPS} steps; a ridge would help")


def _loss(wins: Tensor, scores: Tensor, ridge: float) -> Tensor:
    gaps = scores[:, None] - scores[None, :]
    return -(wins * F.logsigmoid(gaps)).sum() + ridge / 2 * scores.square().sum()


def _slope(wins: Tensor, scores: Tensor, ridge: float) -> Tensor:
    """(K,) derivative of the loss."""
    surprise = wins * torch.sigmoid(scores[None, :] - scores[:, None])  # of each win
    return surprise.sum(0) - surprise.sum(1) + ridge * scores


def _information(wins: Tensor, scores: Tensor) -> Tensor:
    """(K, K) Fisher information of the scores, which leaves their mean free."""
    p = torch.sigmoid(scores[:, None] - scores[None, :])
    weights = (wins + wins.T) * p * (1 - p)
    return torch.diag(weights.sum(1)) - weights


def _inverse_beside_the_mean(matrix: Tensor) -> Tensor:
    """(K, K) pseudo-inverse of a symmetric matrix on the vectors of sum 0."""
    scale = matrix.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    inverse = torch.linalg.inv(matrix + scale / len(matrix))  # any multiple of the mean makes it regular
    return inverse - inverse.mean()


def _downhill(wins: Tensor, scores: Tensor, step: Tensor, ridge: float) -> Tensor:
    """One step of Newton's method, halved until the loss is no higher, but for rounding."""
    highest_loss = _loss(wins, scores, ridge) + TOLERANCE * wins.sum()
    while _loss(wins, scores - step, ridge) > highest_loss:
        step = step / 2
    return scores - step


# Who can be compared with whom


def components(wins: Tensor) -> list[list[int]]:
    """Sets of arms that comparisons connect, directly or through others; ordered by their first arm."""
    return _groups(_reached((wins + wins.T) > 0))


def strong_components(wins: Tensor) -> list[list[int]]:
    """Sets of arms each of which beat, or tied with, each other one directly or through others.

    With a single set the likelihood has a finite maximum (Ford 1957).
    """
    reached = _reached(wins > 0)
    return _groups(reached & reached.T)


def _reached(edges: Tensor) -> Tensor:
    """(K, K) bool, where a path of any length leads."""
    reached = edges | torch.eye(len(edges), dtype=torch.bool)
    while True:
        further = (reached.float() @ reached.float()) > 0
        if torch.equal(further, reached):
            return reached
        reached = further


def _groups(together: Tensor) -> list[list[int]]:
    """The classes of an equivalence relation (K, K)."""
    first = together.int().argmax(1)  # of equals the first: each arm's class is named by its first arm
    return [(first == arm).nonzero().squeeze(1).tolist() for arm in first.unique().tolist()]


def _expect_connected(wins: Tensor, names: Sequence[str] | None) -> None:
    sets = components(wins)
    if len(sets) > 1:
        raise ValueError(
            f"no comparison connects these {len(sets)} sets of arms, whose scores cannot be compared: "
            + "; ".join(_named(arms, names) for arms in sets)
        )


def _expect_finite_maximum(wins: Tensor, names: Sequence[str] | None) -> None:
    sets = strong_components(wins)
    if len(sets) == 1:
        return
    inside = [arms for arms in sets if not _others(wins, arms)[:, arms].any()]  # never lost to the others
    best = inside[0]
    rest = [arm for arm in range(len(wins)) if arm not in best]
    raise ValueError(
        f"{_named(best, names)} never lost to, nor tied with, {_named(rest, names)}: their scores would be "
        "infinitely far apart; more comparisons, or a prior (ridge above 0), make them finite"
    )


def _others(wins: Tensor, arms: list[int]) -> Tensor:
    """The wins of all arms that are not in ``arms``."""
    outside = torch.ones(len(wins), dtype=torch.bool)
    outside[arms] = False
    return wins[outside]


def _named(arms: list[int], names: Sequence[str] | None) -> str:
    shown = [str(arm) if names is None else names[arm] for arm in arms[:SHOWN]]
    more = [f"{len(arms) - SHOWN} more"] if len(arms) > SHOWN else []
    return f"{{{', '.join(shown + more)}}}"


# Winners


def preference_matrix(wins: Tensor) -> Tensor:
    """(K, K) share of the comparisons of i and j in which i was preferred; NaN where there are none."""
    wins = _without_diagonal(wins)
    return wins / (wins + wins.T)  # 0/0 is NaN


def condorcet_winner(preferences: Tensor) -> int | None:
    """The arm that is preferred to every other one with a probability above ½, if there is one.

    Args:
        preferences: (K, K) P(i ≻ j), NaN where unknown; the diagonal is not read.
    """
    beats = _without_diagonal(preferences, fill=1.0) > 1 / 2  # NaN beats nothing
    winners = beats.all(1).nonzero().squeeze(1).tolist()
    return winners[0] if winners else None


def copeland_scores(preferences: Tensor) -> Tensor:
    """(K,) float64: how many arms each is preferred to, minus how many are preferred to it (Copeland 1951).

    Args:
        preferences: (K, K) P(i ≻ j); what is NaN counts as neither, and the diagonal is not read.
    """
    gaps = _without_diagonal(preferences, fill=float("nan")) - 1 / 2
    return torch.where(gaps.isnan(), 0.0, gaps).sign().sum(1)


def borda_scores(preferences: Tensor) -> Tensor:
    """(K,) float64: mean probability of being preferred to another arm, each of them counting once.

    A tie is worth half. Comparisons that say nothing of a pair (NaN) are left out of the mean; an arm that
    was compared with none has NaN.

    Args:
        preferences: (K, K) P(i ≻ j), NaN where unknown; the diagonal is not read.
    """
    return _without_diagonal(preferences, fill=float("nan")).nanmean(1)


def highest(scores: Tensor) -> list[int]:
    """The arms with the highest score, NaN aside."""
    return (scores == scores.nan_to_num(nan=-torch.inf).max()).nonzero().squeeze(1).tolist()


def _without_diagonal(matrix: Tensor, fill: float = 0.0) -> Tensor:
    """A float64 copy with ``fill`` on its diagonal."""
    return matrix.double().masked_fill(torch.eye(len(matrix), dtype=torch.bool), fill)
