import pytest

from rlhf.evaluation.pairs import agreement, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, Table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_is_the_published_one(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_is_symmetric_in_wins_and_losses() -> None:
    low, high = wilson_interval(3, 10)
    other_low, other_high = wilson_interval(7, 10)
    assert (low, high) == pytest.approx((1 - other_high, 1 - other_low))


def test_agreement_counts_strict_wins() -> None:
    found = agreement("length", [2.0, 1.0, 0.5, 3.0], [1.0, 1.0, 0.7, -3.0])
    assert (found.scorer, found.pairs, found.accuracy, found.tied) == ("length", 4, 0.5, 0.25)
    assert (found.low, found.high) == wilson_interval(2, 4)


def test_a_scorer_that_always_says_the_same_is_never_right() -> None:
    found = agreement("constant", [1.0] * 5, [1.0] * 5)
    assert (found.accuracy, found.tied) == (0.0, 1.0)


@pytest.mark.parametrize(("chosen", "rejected"), [([], []), ([1.0], []), ([1.0], [1.0, 2.0])])
def test_pairs_have_two_sides(chosen: list[float], rejected: list[float]) -> None:
    message = f"length: {len(chosen)} chosen and {len(rejected)} rejected scores"
    with pytest.raises(ValueError, match=message):
        agreement("length", chosen, rejected)
