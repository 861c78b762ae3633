"""Bradley–Terry on arms and winners: closed forms, the theory's covariance, and what cannot be ranked."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from rlhf.ops.ranking import (
    borda_scores,
    bradley_terry_mle,
    components,
    condorcet_winner,
    copeland_scores,
    highest,
    preference_matrix,
    strong_components,
    win_counts,
)

CHI_SQUARE = {4: (0.0908, 18.467), 7: (0.5985, 24.322)}
"""Degrees of freedom → quantiles 0.001 and 0.999."""


def float64(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def drawn(truth: Tensor, count: int, tie: float, generator: torch.Generator) -> Tensor:
    """Wins of every pair compared ``count`` times, of which a share ``tie`` ends in a tie instead."""
    wins = torch.zeros(len(truth), len(truth), dtype=torch.float64)
    for i, j in itertools.combinations(range(len(truth)), 2):
        uniform = torch.rand(count, 2, generator=generator, dtype=torch.float64)
        won = (uniform[:, 0] < torch.sigmoid(truth[i] - truth[j])).double()
        outcome = torch.where(uniform[:, 1] < tie, 0.5, won)
        wins[i, j], wins[j, i] = outcome.sum(), (1 - outcome).sum()
    return wins


# Counting


def test_every_comparison_is_counted_once_and_a_tie_for_both() -> None:
    first, second = torch.tensor([0, 1, 0, 2]), torch.tensor([1, 0, 2, 0])
    label, count = torch.tensor([1.0, 1.0, 0.5, 0.0]), torch.tensor([3.0, 2.0, 4.0, 5.0])
    expected = float64([0, 3, 2 + 5], [2, 0, 0], [2, 0, 0])
    torch.testing.assert_close(win_counts(first, second, label, count, arms=3), expected)


# Bradley–Terry


def test_two_arms_have_the_log_odds_and_its_error() -> None:
    """30 wins of 40: r_A − r_B = log 3, variance 1/(40·¾·¼); each arm half of the gap from the mean."""
    scores, covariance = bradley_terry_mle(float64([0, 30], [10, 0]))
    torch.testing.assert_close(scores, torch.tensor([1.0, -1.0]).double() * math.log(3) / 2)
    variance = 1 / (40 * 0.75 * 0.25)
    torch.testing.assert_close(covariance, variance / 4 * float64([1, -1], [-1, 1]))


def test_ties_count_half_for_both() -> None:
    tied = bradley_terry_mle(float64([0, 20 + 5], [10 + 5, 0]))[0]
    first, second = torch.tensor([0, 0, 0]), torch.tensor([1, 1, 1])
    label, count = torch.tensor([1.0, 0.0, 0.5]), torch.tensor([20.0, 10.0, 10.0])
    scores, _ = bradley_terry_mle(win_counts(first, second, label, count, arms=2))
    torch.testing.assert_close(scores, tied)
    assert scores[0] - scores[1] == pytest.approx(math.log(25 / 15))


def test_wins_of_a_chain_are_a_sum_of_log_odds() -> None:
    """Without a cycle every gap is that of its own pair."""
    scores, covariance = bradley_terry_mle(float64([0, 6, 0], [2, 0, 9], [0, 1, 0]))
    assert scores[0] - scores[1] == pytest.approx(math.log(3))
    assert scores[1] - scores[2] == pytest.approx(math.log(9))
    between = covariance[0, 0] + covariance[2, 2] - 2 * covariance[0, 2]
    assert between.item() == pytest.approx(1 / (8 * 0.75 * 0.25) + 1 / (10 * 0.9 * 0.1))


@pytest.mark.parametrize(("arms", "comparisons"), [(5, 5000), (8, 10_000)])
def test_known_scores_are_recovered_within_the_fisher_errors(arms: int, comparisons: int) -> None:
    """E8: the Wald statistic of one fit lies between the quantiles 0.001 and 0.999 of χ²."""
    truth = torch.linspace(-1, 1, arms, dtype=torch.float64)
    count = comparisons // math.comb(arms, 2)
    scores, covariance = bradley_terry_mle(drawn(truth, count, 0.0, torch.Generator().manual_seed(0)))
    information = torch.linalg.pinv(covariance, rtol=1e-9)
    low, high = CHI_SQUARE[arms - 1]
    error = scores - truth
    assert low < error @ information @ error < high
    wrong = scores.flip(0) - truth  # the control
    assert wrong @ information @ wrong > 100


def test_errors_are_those_of_many_repetitions() -> None:
    """E8, K = 5, N = 5,000: sd 0.0435, 0.0398, 0.0385; 95 % intervals hold the truth 95 times of 100."""
    truth, generator = torch.linspace(-1, 1, 5, dtype=torch.float64), torch.Generator().manual_seed(1)
    fits = [bradley_terry_mle(drawn(truth, 500, 0.0, generator)) for _ in range(200)]
    errors = torch.stack([covariance.diagonal().sqrt() for _, covariance in fits])
    torch.testing.assert_close(
        errors.mean(0)[:3], torch.tensor([0.0435, 0.0398, 0.0385]).double(), atol=5e-4, rtol=0
    )
    inside = (torch.stack([scores for scores, _ in fits]) - truth).abs() < 1.96 * errors
    assert 0.92 < inside.double().mean() < 0.98


def test_with_ties_the_errors_are_too_large_rather_than_too_small() -> None:
    """A tie varies less than the comparison that the information assumes."""
    truth, generator = torch.zeros(4, dtype=torch.float64), torch.Generator().manual_seed(2)
    fits = [bradley_terry_mle(drawn(truth, 200, 0.5, generator)) for _ in range(200)]
    spread = torch.stack([scores for scores, _ in fits]).std(0)
    claimed = torch.stack([covariance.diagonal().sqrt() for _, covariance in fits]).mean(0)
    assert ((spread / claimed - 0.5**0.5).abs() < 0.12).all()  # half of the variance is gone


@pytest.mark.parametrize(
    ("weight", "expected"), [(1.0, (0.030, 0.722, -0.752)), (20.0, (0.362, 0.370, -0.732))]
)
def test_the_favourite_of_every_pair_is_not_ranked_first(weight: float, expected: tuple[float, ...]) -> None:
    """E13: A beats B and C by 0.51, B beats C by 0.99."""
    wins = float64([0, 0.51 * weight, 0.51], [0.49 * weight, 0, 0.99], [0.49, 0.01, 0])
    scores, _ = bradley_terry_mle(wins)
    torch.testing.assert_close(scores, torch.tensor(expected).double(), atol=1e-3, rtol=0)
    preferences = preference_matrix(wins)
    assert condorcet_winner(preferences) == 0
    torch.testing.assert_close(borda_scores(preferences), torch.tensor([0.51, 0.74, 0.25]).double())
    assert highest(borda_scores(preferences)) == [1]
    assert copeland_scores(preferences).tolist() == [2.0, 0.0, -2.0]


def test_a_cycle_has_no_winner_and_equal_scores() -> None:
    wins = float64([0, 7, 3], [3, 0, 7], [7, 3, 0])
    assert bradley_terry_mle(wins)[0].abs().max() < 1e-12
    assert condorcet_winner(preference_matrix(wins)) is None
    assert highest(copeland_scores(preference_matrix(wins))) == [0, 1, 2]


def test_all_rules_agree_where_scores_explain_the_preferences() -> None:
    truth = torch.tensor([0.3, -1.2, 0.9, 0.1], dtype=torch.float64)
    preferences = torch.sigmoid(truth[:, None] - truth[None, :])
    order = truth.argsort().tolist()
    assert condorcet_winner(preferences) == order[-1]
    for scores in (borda_scores(preferences), copeland_scores(preferences)):
        assert scores.argsort().tolist() == order
    torch.testing.assert_close(bradley_terry_mle(preferences)[0], truth - truth.mean())


def test_a_far_maximum_is_found() -> None:
    """A single loss in a million, and an arm that beats all by it."""
    scores, _ = bradley_terry_mle(float64([0, 1e6, 1e6], [1, 0, 5], [0, 5, 0]))
    assert scores[0] - scores[1] > 13
    assert scores.sum().abs() < 1e-9


# What cannot be ranked


def test_arms_that_no_comparison_connects_are_named() -> None:
    wins = float64([0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 2], [0, 0, 1, 0])
    assert components(wins) == [[0, 1], [2, 3]]
    for ridge in (0.0, 1.0):  # a prior compares nothing
        with pytest.raises(
            ValueError, match=r"connects these 2 sets of arms.*: \{p, q\}; \{r, s\}"
        ) as refusal:
            bradley_terry_mle(wins, ridge=ridge, names=list("pqrs"))
        assert "\n" not in str(refusal.value)


def test_arms_that_never_lost_are_named() -> None:
    """B and C beat each other, and lost to A alone; D lost to all."""
    wins = float64([0, 3, 0, 1], [0, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0])
    assert strong_components(wins) == strong_components(wins.flip(0, 1)) == [[0], [1, 2], [3]]
    with pytest.raises(ValueError, match=r"\{A\} never lost to, nor tied with, \{B, C, D\}: .*ridge above 0"):
        bradley_terry_mle(wins, names=list("ABCD"))
    scores, covariance = bradley_terry_mle(wins, ridge=0.1)
    assert scores.argsort(descending=True).tolist()[0] == 0
    assert (covariance.diagonal() > 0).all()
    torch.testing.assert_close(covariance.sum(1), torch.zeros(4).double(), atol=1e-12, rtol=0)


def test_a_tie_is_enough_for_a_finite_maximum() -> None:
    assert bradley_terry_mle(float64([0, 5.5], [0.5, 0]))[0][0] == pytest.approx(math.log(11) / 2)


def test_a_ridge_is_a_gaussian_prior() -> None:
    """Two arms at ±x: 2·5·σ(−2x) = 2·ridge·x at the maximum, and the curvature there."""
    ridge = 0.7
    scores, covariance = bradley_terry_mle(float64([0, 5], [0, 0]), ridge=ridge)
    x = scores[0].item()
    p = 1 / (1 + math.exp(-2 * x))
    assert 5 * (1 - p) == pytest.approx(ridge * x)
    along = 4 * 5 * p * (1 - p) + 2 * ridge  # second derivative in x
    assert covariance[0, 0].item() == pytest.approx(1 / along)


# Winners of raw comparisons


def test_pairs_that_were_never_compared_count_for_no_rule() -> None:
    preferences = preference_matrix(float64([9, 3, 0], [1, 9, 2], [0, 2, 9]))  # the diagonal is not read
    assert preferences[0, 1] == 0.75
    assert preferences.isnan().sum() == 5
    assert condorcet_winner(preferences) is None  # nobody knows whether A beats C
    torch.testing.assert_close(borda_scores(preferences), torch.tensor([0.75, 0.375, 0.5]).double())
    assert copeland_scores(preferences).tolist() == [1.0, -1.0, 0.0]


def test_half_is_no_win() -> None:
    preferences = float64([0, 0.5], [0.5, 0])
    assert condorcet_winner(preferences) is None
    assert copeland_scores(preferences).tolist() == [0.0, 0.0]
