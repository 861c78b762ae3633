import itertools
import math

import pytest
import torch
from torch import Tensor

from rlhf.ops.best_of_n import (
    best_of_n_curve,
    best_of_n_kl,
    best_of_n_kl_bound,
    best_of_n_means,
    best_of_n_pmf,
    best_rows,
)


@pytest.mark.parametrize(
    ("n", "bound"),
    [
        (1, 0.0),
        (2, 0.193147),
        (4, 0.636294),
        (8, 1.204),
        (16, 1.835089),
        (64, 3.174508),
        (128, 3.860),
        (256, 4.549084),
        (512, 5.240),
    ],
)
def test_bound_of_the_kl_is_the_published_table(n: int, bound: float) -> None:
    assert best_of_n_kl_bound(n) == pytest.approx(bound, abs=5e-4 if n in (8, 128, 512) else 5e-7)


def test_a_bound_for_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        best_of_n_kl_bound(0)


def exact_kl(probabilities: list[float], n: int) -> float:
    """KL(best-of-n‖π) of responses in the order of their scores: the best is i with Fᵢⁿ − Fᵢ₋₁ⁿ."""
    below, kl = 0.0, 0.0
    for p in probabilities:
        best = (below + p) ** n - below**n
        kl += best * math.log(best / p) if best else 0.0  # underflown: adds nothing
        below += p
    return kl


@pytest.mark.parametrize(
    ("n", "exact"), [(2, 0.192352), (4, 0.631542), (16, 1.744796), (64, 2.339208), (256, 2.351375)]
)
def test_bound_is_above_the_kl_of_twenty_responses(n: int, exact: float) -> None:
    found = exact_kl([i / 210 for i in range(1, 21)], n)
    assert found == pytest.approx(exact, abs=5e-7)  # six printed digits
    assert found < best_of_n_kl_bound(n)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_bound_is_reached_where_no_response_has_a_probability_of_its_own(n: int) -> None:
    assert exact_kl([1e-4] * 10_000, n) == pytest.approx(best_of_n_kl_bound(n), abs=1e-3)


# The estimator


def by_definition(scores: list[float], values: list[float], n: int) -> float:
    """Mean over all subsets of n of the value of the best, of the mean value where several are."""
    found = []
    for subset in itertools.combinations(range(len(scores)), n):
        highest = max(scores[i] for i in subset)
        tied = [values[i] for i in subset if scores[i] == highest]
        found.append(sum(tied) / len(tied))
    return sum(found) / len(found)


TIED = [2.0, -1.0, 0.5, 2.0, 0.5, 0.5, 7.0]
GOLD = [0.1, 5.0, -2.0, 0.7, 3.0, 1.0, -4.0]


@pytest.mark.parametrize("values", [TIED, GOLD])
def test_estimate_is_the_mean_over_all_subsets(values: list[float]) -> None:
    found = best_of_n_means(torch.tensor([TIED]), torch.tensor([values], dtype=torch.float64))[0]
    expected = [by_definition(TIED, values, n) for n in range(1, 8)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_estimate_without_values_is_of_the_scores_and_knows_no_order() -> None:
    scores = torch.tensor([TIED, TIED[::-1]], dtype=torch.float64)
    means = best_of_n_means(scores)
    torch.testing.assert_close(means, best_of_n_means(scores, scores))
    torch.testing.assert_close(means[0], means[1])
    assert means[0, 0] == pytest.approx(sum(TIED) / 7)
    assert means[0, 6] == pytest.approx(7.0)


def test_prompts_are_estimated_apart() -> None:
    scores = torch.tensor([TIED, GOLD])
    alone = torch.cat([best_of_n_means(row[None], -row[None]) for row in scores])
    torch.testing.assert_close(best_of_n_means(scores, -scores), alone)


OUTCOMES = ([1.0, 0.0, 1.0, 2.0], [0.4, -3.0, 2.5, 1.0], [0.3, 0.4, 0.2, 0.1])
"""Scores, of which two tie, values, and probabilities of all responses."""


def kept_of_all_draws(n: int) -> list[tuple[int, float]]:
    """The first of the highest scores of each of the 4ⁿ draws of n, and the probability of the draw."""
    scores, _, p = OUTCOMES
    draws = itertools.product(range(4), repeat=n)
    return [(max(draw, key=lambda y: scores[y]), math.prod(p[y] for y in draw)) for draw in draws]


def test_estimate_is_unbiased_over_all_draws() -> None:
    scores, values, p = (torch.tensor(part, dtype=torch.float64) for part in OUTCOMES)
    draws = torch.cartesian_prod(*[torch.arange(4)] * 5)  # (1024, 5): every draw of N = 5
    found = p[draws].prod(1) @ best_of_n_means(scores[draws], values[draws])
    expected = [sum(chance * OUTCOMES[1][y] for y, chance in kept_of_all_draws(n)) for n in range(1, 6)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_thousands_of_samples_lose_no_digits() -> None:
    """The largest of n of the numbers 1 … N without replacement is n(N + 1)/(n + 1) on average."""
    samples = 4096
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(0))
    found = best_of_n_means((order + 1).double()[None])[0]
    n = torch.arange(1, samples + 1, dtype=torch.float64)
    torch.testing.assert_close(found, n * (samples + 1) / (n + 1), rtol=1e-11, atol=0)  # 4096 roundings


def test_curve_is_the_mean_over_prompts_with_its_standard_error() -> None:
    means, errors = best_of_n_curve(torch.tensor([[0.0, 2.0], [4.0, 10.0], [0.0, 0.0]]))
    torch.testing.assert_close(means, torch.tensor([8 / 3, 4.0], dtype=torch.float64))  # of 1 7 0, 2 10 0
    expected = [math.sqrt((25 / 9 + 169 / 9 + 64 / 9) / 2 / 3), math.sqrt((4 + 36 + 16) / 2 / 3)]
    torch.testing.assert_close(errors, torch.tensor(expected, dtype=torch.float64))


def test_one_prompt_has_no_standard_error() -> None:
    with pytest.raises(ValueError, match="at least 2 prompts are needed for an error, got 1"):
        best_of_n_curve(torch.tensor([[0.0, 2.0]]))


def test_the_first_of_the_highest_is_the_best_row() -> None:
    scores = torch.tensor([1.0, 3.0, 3.0, -1.0, -1.0, -2.0])
    assert best_rows(scores, 3).tolist() == [1, 3]
    assert best_rows(scores, 1).tolist() == [0, 1, 2, 3, 4, 5]


# The exact distribution (E11)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_pmf_is_that_of_all_draws(n: int) -> None:
    expected = torch.zeros(5, dtype=torch.float64)
    for y, chance in kept_of_all_draws(n):
        expected[y] += chance
    scores, _, p = OUTCOMES
    found = best_of_n_pmf(torch.tensor([*scores, -9.0]), torch.tensor([*p, 0.0], dtype=torch.float64), n)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)


def test_pmf_keeps_a_best_response_that_is_all_but_impossible() -> None:
    found = best_of_n_pmf(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1e-18], dtype=torch.float64), 2)
    assert found[1].item() == pytest.approx(2e-18, rel=1e-12)


TWENTY = torch.arange(1, 21, dtype=torch.float64) / 210


@pytest.mark.parametrize(
    ("n", "kl"), [(2, 0.192352), (4, 0.631542), (16, 1.744796), (64, 2.339208), (256, 2.351375)]
)
def test_divergence_is_the_published_table(n: int, kl: float) -> None:
    assert best_of_n_kl(TWENTY, TWENTY, n) == pytest.approx(kl, abs=5e-7)  # scores in the order of p


def wins(p: Tensor, n: int) -> float:
    """How often the best of n beats one sample, ties ½; scores ascend."""
    below = p.cumsum(0) - p
    return float(best_of_n_pmf(torch.arange(len(p)), p, n) @ (below + p / 2))


@pytest.mark.parametrize("n", [2, 4, 16])
def test_without_atoms_the_bound_and_the_win_rate_are_reached(n: int) -> None:
    p = torch.full((100_000,), 1e-5, dtype=torch.float64)
    assert best_of_n_kl(torch.arange(100_000), p, n) == pytest.approx(best_of_n_kl_bound(n), abs=1e-4)
    assert wins(p, n) == pytest.approx(n / (n + 1), abs=1e-5)


def test_with_atoms_the_win_rate_is_lower() -> None:
    assert wins(TWENTY, 2) == pytest.approx(0.665873, abs=5e-7)


@pytest.mark.parametrize(("n", "rounds"), [(2, 3), (4, 2), (3, 4)])
def test_rounds_of_the_best_of_n_are_the_best_of_a_power(n: int, rounds: int) -> None:
    """D55: expert iteration with a perfect fit, also where scores tie."""
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(50, generator=generator, dtype=torch.float64)
    scores = torch.randint(20, (50,), generator=generator)
    p, policy = p / p.sum(), p / p.sum()
    for _ in range(rounds):
        policy = best_of_n_pmf(scores, policy, n)
    torch.testing.assert_close(policy, best_of_n_pmf(scores, p, n**rounds), rtol=1e-12, atol=1e-15)


def test_no_policy_of_equal_kl_scores_higher_than_the_tilted_one() -> None:
    scores = torch.randn(20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    best = best_of_n_pmf(scores, TWENTY, 8)
    kl, low, high = best_of_n_kl(scores, TWENTY, 8), 1e-3, 1e3
    for _ in range(100):  # bisection of β, in which the KL of the tilted policy falls
        middle = math.sqrt(low * high)
        tilted = (TWENTY.log() + scores / middle).softmax(0)
        low, high = (middle, high) if tilted @ (tilted / TWENTY).log() > kl else (low, middle)
    assert best @ scores < tilted @ scores
    assert best @ scores > 0.9 * (tilted @ scores)  # and not by much
