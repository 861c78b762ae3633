"""E8 and E13: what the pair loss recovers from comparisons, and what it ranks where no scores exist."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.preferences import BradleyTerry

CHI_SQUARE = {4: (0.0908, 18.467), 7: (0.5985, 24.322)}
"""Degrees of freedom → quantiles 0.001 and 0.999."""


def pairs(items: int) -> Tensor:
    """(pairs, 2) every pair of items, the smaller number first."""
    return torch.combinations(torch.arange(items))


def fit(wins: Tensor, losses: Tensor) -> Tensor:
    """(items,) scores of mean 0 that minimise the production loss, by Newton's method.

    Args:
        wins: (pairs,) how often the first item of each pair was preferred.
        losses: (pairs,) how often the second was.
    """
    items = int((1 + (1 + 8 * len(wins)) ** 0.5) / 2)
    first, second = pairs(items).unbind(1)

    def loss(scores: Tensor) -> Tensor:
        a, b = scores[first], scores[second]
        margin = torch.zeros_like(a)
        return wins @ BradleyTerry()(a, b, margin) + losses @ BradleyTerry()(b, a, margin)

    scores = torch.zeros(items, dtype=torch.float64)
    for _ in range(12):
        matrix = (
            information(scores, wins + losses) + 1 / items
        )  # the mean, which no comparison tells, stays 0
        scores = scores - torch.linalg.solve(matrix, torch.func.grad(loss)(scores))
    return scores - scores.mean()


def information(scores: Tensor, counts: Tensor) -> Tensor:
    """Σ n·p(1 − p)·(eᵢ − eⱼ)(eᵢ − eⱼ)ᵀ over the pairs, by hand."""
    first, second = pairs(len(scores)).unbind(1)
    units = torch.eye(len(scores), dtype=torch.float64)
    apart, p = units[first] - units[second], torch.sigmoid(scores[first] - scores[second])
    return apart.T @ torch.diag(counts * p * (1 - p)) @ apart


def drawn(scores: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(pairs,) wins of the first item out of ``count`` comparisons of each pair."""
    first, second = pairs(len(scores)).unbind(1)
    p = torch.sigmoid(scores[first] - scores[second])
    uniform = torch.rand(count, len(p), generator=generator, dtype=torch.float64)
    return (uniform < p).sum(0).double()


def evenly(items: int, count: int) -> Tensor:
    """``count`` comparisons of every pair."""
    return torch.full((len(pairs(items)),), float(count)).double()


def wald(found: Tensor, truth: Tensor, count: int) -> float:
    """Squared distance in units of the covariance that theory gives."""
    error = found - (truth - truth.mean())
    return (error @ information(truth, evenly(len(truth), count)) @ error).item()


@pytest.mark.parametrize(("items", "comparisons"), [(5, 5000), (8, 10_000)])
def test_a_fit_is_as_far_from_the_truth_as_its_information_says(items: int, comparisons: int) -> None:
    truth = torch.linspace(-1, 1, items, dtype=torch.float64)
    count = comparisons // len(pairs(items))
    wins = drawn(truth, count, torch.Generator().manual_seed(0))
    found = fit(wins, count - wins)
    low, high = CHI_SQUARE[items - 1]
    assert low < wald(found, truth, count) < high
    assert wald(found.flip(0), truth, count) > 100  # the control: the items the wrong way round
    assert wald(2 * found, truth, count) > 100


def test_errors_of_many_fits_have_the_covariance_of_the_theory() -> None:
    """K = 5, N = 5,000: sd 0.0435, 0.0398, 0.0385, …, and a mean Wald statistic of 4."""
    truth, count = torch.linspace(-1, 1, 5, dtype=torch.float64), 500
    generator = torch.Generator().manual_seed(1)
    found = torch.stack([fit(w, count - w) for w in (drawn(truth, count, generator) for _ in range(100))])
    theory = torch.linalg.pinv(information(truth, evenly(len(truth), count)), rtol=1e-9).diagonal().sqrt()
    torch.testing.assert_close(theory[:3], torch.tensor([0.0435, 0.0398, 0.0385]).double(), atol=1e-4, rtol=0)
    assert (found.std(0) / theory - 1).abs().max() < 0.25
    mean = sum(wald(one, truth, count) for one in found) / len(found)
    assert 3.1 < mean < 4.9  # three standard errors of a hundred χ² of four degrees of freedom


def test_equal_scores_have_the_closed_form_of_the_variance() -> None:
    """K items, N comparisons: sd 2(K − 1)²/(K·N) and Var(rᵢ − rⱼ) = 4(K − 1)/N."""
    items, count = 5, 500
    covariance = torch.linalg.pinv(information(torch.zeros(items).double(), evenly(items, count)), rtol=1e-9)
    total = count * len(pairs(items))
    assert covariance[0, 0].item() == pytest.approx(2 * (items - 1) ** 2 / (items * total))
    between = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert between.item() == pytest.approx(4 * (items - 1) / total)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((1.0, 1.0, 1.0), (0.030, 0.722, -0.752)),
        ((20.0, 1.0, 1.0), (0.362, 0.370, -0.732)),
    ],
)
def test_the_favourite_of_all_pairs_is_not_ranked_first(
    counts: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    """A beats B and C by 0.51, B beats C by 0.99: A wins every pair, the fit prefers B."""
    weights = torch.tensor(counts).double()
    preferred = torch.tensor([0.51, 0.51, 0.99]).double()
    found = fit(weights * preferred, weights * (1 - preferred))
    torch.testing.assert_close(found, torch.tensor(expected).double(), atol=1e-3, rtol=0)
    assert found.argmax() == 1


def test_a_cycle_is_a_tie() -> None:
    wins = torch.tensor([0.7, 0.3, 0.7]).double()  # A over B, C over A, B over C
    assert fit(wins, 1 - wins).abs().max() < 1e-12


def test_preferences_that_scores_explain_are_recovered_from_any_design() -> None:
    truth = torch.tensor([0.9, -0.4, 0.1, -0.6], dtype=torch.float64)
    first, second = pairs(4).unbind(1)
    p = torch.sigmoid(truth[first] - truth[second])
    for weights in ([1.0] * 6, [5.0, 1.0, 0.0, 3.0, 0.0, 0.2], [1.0, 0.0, 0.0, 2.0, 0.0, 1.0]):
        n = torch.tensor(weights).double()
        torch.testing.assert_close(fit(n * p, n * (1 - p)), truth, atol=1e-10, rtol=0)
