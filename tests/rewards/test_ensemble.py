"""Several reward models of one thing, by pencil."""

from typing import Any

import pytest
import torch

from rlhf.rewards.ensemble import EnsembleReward, LowestReward
from rlhf.rewards.mixture import named_scores, score_names
from rlhf.rewards.sources import LowestOfEnsemble, RewardEnsemble


class Says:
    """The same scores for every rollout."""

    def __init__(self, *scores: float) -> None:
        self.scores = torch.tensor(scores)

    def __call__(self, rollout: Any, texts: Any) -> torch.Tensor:
        return self.scores

    def sequences(self, batch: Any, decoder: Any, columns: Any = None) -> torch.Tensor:
        return self.scores


class Texts:
    """Prompts, for messages."""

    def prompts(self, rollout: Any) -> list[str]:
        return ["p", "q"]


PARTS: dict[str, Any] = {"member_1": Says(1.0, 5.0), "member_2": Says(3.0, -1.0)}


def test_the_mean_less_the_disagreement() -> None:
    """Means 2 and 2, population deviations 1 and 3."""
    found = EnsembleReward(parts=PARTS, std_coef=0.5)
    torch.testing.assert_close(found.sequences(None, None), torch.tensor([1.5, 0.5]))  # type: ignore[arg-type]
    torch.testing.assert_close(EnsembleReward(parts=PARTS)(None, None), torch.tensor([2.0, 2.0]))  # type: ignore[arg-type]


def test_the_lowest() -> None:
    torch.testing.assert_close(LowestReward(parts=PARTS)(None, None), torch.tensor([1.0, -1.0]))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [EnsembleReward, LowestReward])
def test_members_and_disagreement_are_shown(kind: type[EnsembleReward]) -> None:
    reward: Any = kind(parts=PARTS)
    shown = named_scores(reward, None, Texts())  # type: ignore[arg-type]
    assert list(shown) == score_names(reward) == ["score", "member_1", "member_2", "disagreement"]
    torch.testing.assert_close(shown["disagreement"], torch.tensor([1.0, 3.0]))


@pytest.mark.parametrize("paths", [[], ["a"], ["a", "a"]])
@pytest.mark.parametrize("kind", [RewardEnsemble, LowestOfEnsemble])
def test_an_ensemble_of_one_is_refused(kind: Any, paths: list[str]) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__}.paths must name at least two different models"):
        kind(paths=paths)


def test_a_reward_for_disagreement_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"RewardEnsemble.std_coef must not be negative or infinite, got -1.0"
    ):
        RewardEnsemble(paths=["a", "b"], std_coef=-1.0)
