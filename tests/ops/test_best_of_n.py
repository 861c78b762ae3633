import math

import pytest

from rlhf.ops.best_of_n import best_of_n_kl_bound


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
def test_kl_bound_is_the_published_table(n: int, bound: float) -> None:
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
