"""Rewards made of other rewards, whose parts can be seen by themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.batch import Rollout, SequenceBatch
from rlhf.rewards.reward import Columns, Reward, Texts, expect_finite
from rlhf.rewards.texts import Decoder


@dataclass(kw_only=True, slots=True)
class CombinedReward(ABC):
    """One score from the scores of the parts."""

    parts: dict[str, Reward]

    @property
    def names(self) -> list[str]:
        """What ``shown`` gives."""
        return list(self.parts)

    def __call__(self, rollout: Rollout, texts: Texts) -> Tensor:
        """(B,) float32."""
        return self.total(self.by_name(rollout, texts))

    def sequences(self, batch: SequenceBatch, decoder: Decoder, columns: Columns | None = None) -> Tensor:
        """(B,) float32."""
        return self.total(
            {name: part.sequences(batch, decoder, columns) for name, part in self.parts.items()}
        )

    def by_name(self, rollout: Rollout, texts: Texts) -> dict[str, Tensor]:
        """(B,) float32 of every part, without its weight."""
        return {name: part(rollout, texts) for name, part in self.parts.items()}

    @abstractmethod
    def total(self, scores: dict[str, Tensor]) -> Tensor:
        """(B,) float32 from the parts' scores."""

    def shown(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """(B,) float32 each, what is logged beside the score: the parts'."""
        return scores


@dataclass(kw_only=True, slots=True)
class MixtureReward(CombinedReward):
    """score = Σ weight · part, over the parts by name."""

    weights: dict[str, float]

    def total(self, scores: dict[str, Tensor]) -> Tensor:
        """(B,) float32 weighted sum of the parts' scores."""
        return torch.stack([self.weights[name] * part for name, part in scores.items()]).sum(0)


def score_names(reward: Reward) -> list[str]:
    """The names that ``named_scores`` gives."""
    return ["score", *(reward.names if isinstance(reward, CombinedReward) else ())]


def named_scores(reward: Reward, rollout: Rollout, texts: Texts) -> dict[str, Tensor]:
    """(B,) float32: ``score``, what is optimised, and of a combined one each part by its name.

    Raises:
        NotFinite: a part is NaN or infinite, which the sum would not tell.
    """
    if not isinstance(reward, CombinedReward):
        return {"score": reward(rollout, texts)}
    parts = reward.by_name(rollout, texts)
    for name, scores in parts.items():
        expect_finite(scores, texts.prompts(rollout), f"the reward's part {name}")
    return {"score": reward.total(parts), **reward.shown(parts)}
