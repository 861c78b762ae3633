from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rlhf.batch import Rollout
from rlhf.rewards.mixture import MixtureReward, named_scores
from rlhf.rewards.reward import FunctionReward


def rollout() -> Rollout:
    """Three responses of one token."""
    return Rollout(
        tokens=torch.tensor([[1, 2], [1, 3], [1, 4]]),
        prompt_mask=torch.ones(3, 1, dtype=torch.bool),
        mask=torch.ones(3, 1, dtype=torch.bool),
        ended=torch.ones(3, dtype=torch.bool),
        sampler_logprobs=torch.zeros(3, 1),
        index=torch.arange(3),
        group=torch.arange(3),
    )


class Texts:
    def prompts(self, rollout: Rollout) -> list[str]:
        return ["how", "why", "when"]

    def responses(self, rollout: Rollout) -> list[str]:
        return ["a", "bb", "ccc"]

    def columns(self, rollout: Rollout) -> list[dict[str, Any]]:
        return [{"bonus": 8.0}, {"bonus": 4.0}, {"bonus": 2.0}]


CALLS: list[str] = []


def length(prompts: list[str], responses: list[str], columns: list[dict[str, Any]]) -> list[float]:
    CALLS.append("length")
    return [float(len(response)) for response in responses]


def bonus(prompts: list[str], responses: list[str], columns: list[dict[str, Any]]) -> list[float]:
    return [column["bonus"] for column in columns]


def mixture(**functions: Any) -> MixtureReward:
    parts = {name: FunctionReward(function=function, name=name) for name, function in functions.items()}
    return MixtureReward(parts=parts, weights={"length": -0.5, "bonus": 2.0})


def test_a_mixture_is_the_weighted_sum() -> None:
    scores = mixture(length=length, bonus=bonus)(rollout(), Texts())
    assert scores.tolist() == [2 * 8 - 0.5 * 1, 2 * 4 - 0.5 * 2, 2 * 2 - 0.5 * 3]
    assert scores.dtype == torch.float32


def test_each_part_is_seen_without_its_weight_from_one_call() -> None:
    CALLS.clear()
    named = named_scores(mixture(length=length, bonus=bonus), rollout(), Texts())
    assert {name: scores.tolist() for name, scores in named.items()} == {
        "score": [15.5, 7.0, 2.5],
        "length": [1.0, 2.0, 3.0],
        "bonus": [8.0, 4.0, 2.0],
    }
    assert CALLS == ["length"]


def test_a_single_reward_has_no_parts() -> None:
    named = named_scores(FunctionReward(function=bonus, name="bonus"), rollout(), Texts())
    assert {name: scores.tolist() for name, scores in named.items()} == {"score": [8.0, 4.0, 2.0]}


def test_texts_of_a_file_are_mixed_too() -> None:
    class Constant:
        def __init__(self, score: float) -> None:
            self.score = score

        def sequences(self, batch: Any, decoder: Any, columns: Any) -> torch.Tensor:
            return torch.full((2,), self.score)

    mixed: Any = MixtureReward(parts={"a": Constant(1.0), "b": Constant(3.0)}, weights={"a": 2.0, "b": 0.5})
    assert mixed.sequences(None, None).tolist() == [3.5, 3.5]


def test_a_model_whose_score_is_not_finite_is_named_by_its_part() -> None:
    class Broken:
        def __call__(self, rollout: Any, texts: Any) -> torch.Tensor:
            return torch.tensor([0.0, math.nan, 0.0])

    mixed: Any = MixtureReward(parts={"broken": Broken()}, weights={"broken": 0.0})
    message = "the reward's part broken gave nan to response 1, prompt 'why': a score must be finite"
    with pytest.raises(ValueError, match=message):
        named_scores(mixed, rollout(), Texts())
