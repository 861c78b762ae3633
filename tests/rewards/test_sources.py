from __future__ import annotations

import math
from typing import Any

import pytest

from rlhf.rewards.sources import NoReward, RewardFunction, RewardMixture, RewardModel
from rlhf.rewards.verifiers import ExactMatch

ONE = {"one": ExactMatch()}


@pytest.mark.parametrize(
    ("parts", "weights", "message"),
    [
        ({}, {}, "RewardMixture.parts must name at least one reward"),
        (ONE, {}, r"RewardMixture.weights must name every part \(one\) and no other, got none"),
        (ONE, {"won": 1.0}, r"weights must name every part \(one\) and no other, got won"),
        (ONE, {"one": 1.0, "two": 1.0}, r"every part \(one\) and no other, got one, two"),
        (ONE, {"one": math.nan}, r"RewardMixture.weights.one must be finite, got nan"),
        ({"score": ExactMatch()}, {"score": 1.0}, "names like a_1 other than score, .*, got 'score'"),
        ({"a/b": ExactMatch()}, {"a/b": 1.0}, "names like a_1 .*, got 'a/b'"),
        ({"no": NoReward()}, {"no": 1.0}, "RewardMixture.parts.no must be a single reward, got NoReward"),
        (
            {"in": RewardMixture(parts=dict(ONE), weights={"one": 1.0})},
            {"in": 1.0},
            "RewardMixture.parts.in must be a single reward, got RewardMixture",
        ),
    ],
)
def test_a_mixture_that_does_not_add_up_is_refused(
    parts: dict[str, Any], weights: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RewardMixture(parts=parts, weights=weights)


def test_a_weight_may_be_a_penalty() -> None:
    parts = {"model": RewardModel(path="runs/reward"), "one": ExactMatch()}
    assert RewardMixture(parts=parts, weights={"model": 1.0, "one": -0.5}).weights["one"] == -0.5


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan])
def test_a_time_limit_must_be_positive(seconds: float) -> None:
    with pytest.raises(ValueError, match=r"RewardFunction.timeout_seconds must be positive, got"):
        RewardFunction(function="a:b", timeout_seconds=seconds)
