import math

import pytest
import torch

from rlhf.data.categories import Categories, Division
from rlhf.evaluation.bootstrap import Bootstrap
from rlhf.evaluation.categories import breakdown

RIGHT = torch.tensor([1.0, 1, 0, 1, 0, 0, 1, 1, 1, 1])
TIED = torch.tensor([0.0, 0, 1, 0, 0, 0, 0, 0, 0, 0])
NAMES = ["easy", "easy", "easy", "hard", "hard", "maths", "maths", "code", "code", "code"]


def division(**fields: object) -> Division:
    rows = [({"subset": name}, "") for name in NAMES]
    found = Categories(**fields).of(rows)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_sections_weigh_their_categories_by_rows_and_the_mean_weighs_sections_alike() -> None:
    """Paper and pencil: easy 2/3, hard 1/2, maths 1/2, code 1."""
    sections = {"chat": ["easy", "hard"], "reasoning": ["maths", "code"]}
    found = breakdown(RIGHT, TIED, division(sections=sections), Bootstrap(resamples=10))
    assert {one.name: (one.rows, one.accuracy.value) for one in found.categories} == {
        "easy": (3, pytest.approx(2 / 3)),
        "hard": (2, 0.5),
        "maths": (2, 0.5),
        "code": (3, 1.0),
    }
    chat, reasoning = found.sections
    assert (chat.name, chat.rows) == ("chat", 5)
    assert (chat.accuracy.value, chat.tied) == pytest.approx((3 / 5, 1 / 5))
    assert reasoning.accuracy.value == pytest.approx(4 / 5)
    assert found.mean.accuracy.value == pytest.approx((3 / 5 + 4 / 5) / 2)


def test_a_category_counts_as_many_rows_as_its_weight_says() -> None:
    """RewardBench counts math-prm's 447 pairs as 984, as many as there are programs: here 2 as 3."""
    sections = {"chat": ["easy", "hard"], "reasoning": ["maths", "code"]}
    weighted = division(sections=sections, weights={"maths": 3.0})
    found = breakdown(RIGHT, TIED, weighted, Bootstrap(resamples=10))
    assert found.sections[1].accuracy.value == pytest.approx(3 / 6 * 0.5 + 3 / 6 * 1.0)


def test_without_sections_the_mean_is_over_categories() -> None:
    found = breakdown(RIGHT, TIED, division(), Bootstrap(resamples=10))
    assert found.sections == []
    assert found.mean.accuracy.value == pytest.approx((2 / 3 + 1 / 2 + 1 / 2 + 1) / 4)


def test_categories_of_one_size_are_resampled_apart() -> None:
    """The mean of two independent halves: √½ of the error of each."""
    right = torch.tensor([1.0, 0.0] * 100)
    found = Categories().of([({"subset": "a" if number < 100 else "b"}, "") for number in range(200)])
    assert found is not None
    mean = breakdown(right, torch.zeros(200), found, Bootstrap(resamples=8000)).mean.accuracy
    assert mean.high - mean.low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 200), rel=0.05)


def test_a_weighted_mean_has_the_weighted_binomial_error() -> None:
    """var Σ wᶜ·p̂ᶜ = Σ wᶜ²·p(1 − p)/n: rows are resampled within categories, whose sizes stay."""
    right = torch.tensor([1.0] * 30 + [0.0] * 10 + [1.0] * 20 + [0.0] * 80)
    rows = [({"subset": "a" if number < 40 else "b"}, "") for number in range(140)]
    found = Categories().of(rows)
    assert found is not None
    mean = breakdown(right, torch.zeros(140), found, Bootstrap(resamples=8000)).mean.accuracy
    error = math.sqrt(0.25 * 0.75 * 0.25 / 40 + 0.25 * 0.2 * 0.8 / 100)
    assert mean.value == pytest.approx(0.475)
    assert (mean.high - mean.low) / (2 * 1.96) == pytest.approx(error, rel=0.05)


def test_a_constant_reward_is_never_right_in_any_category() -> None:
    found = breakdown(torch.zeros(10), torch.ones(10), division(), Bootstrap(resamples=10))
    assert all((one.accuracy.value, one.accuracy.high, one.tied) == (0, 0, 1) for one in found.categories)
    assert found.mean.tied == 1
