"""Several reward models of one thing: their mean less a multiple of their disagreement, or the lowest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.rewards.mixture import CombinedReward


@dataclass(kw_only=True, slots=True)
class EnsembleReward(CombinedReward):
    """score = mean − std_coef·std over the members (Coste et al. 2023: uncertainty-weighted)."""

    std_coef: float = 0.0

    @property
    def names(self) -> list[str]:
        """The members, and how far apart they are."""
        return [*self.parts, "disagreement"]

    def total(self, scores: dict[str, Tensor]) -> Tensor:
        """(B,) float32."""
        every = torch.stack(list(scores.values()))
        return every.mean(0) - self.std_coef * every.std(0, correction=0)

    def shown(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """The members' scores and their standard deviation, that of the population."""
        return {**scores, "disagreement": torch.stack(list(scores.values())).std(0, correction=0)}


@dataclass(kw_only=True, slots=True)
class LowestReward(EnsembleReward):
    """score = the lowest of the members' (Coste et al. 2023: worst-case)."""

    def total(self, scores: dict[str, Tensor]) -> Tensor:
        """(B,) float32."""
        return torch.stack(list(scores.values())).amin(0)
