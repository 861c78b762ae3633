"""What an answer is worth before it is asked: which pairs people should compare next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(kw_only=True, slots=True)
class Acquisition(ABC):
    """Gives every pair of a pool a value; the highest are asked first, and the seed orders equal ones."""

    needs_members: ClassVar[int] = 1
    """Reward models that it needs at least."""

    @abstractmethod
    def __call__(self, gaps: Tensor) -> Tensor:
        """The value of each pair.

        Args:
            gaps: (N, M) by how much model m scores the first response of pair n above the second.

        Returns:
            (N,) float64, the same where the two responses change places.
        """


@dataclass(kw_only=True, slots=True)
class Random(Acquisition):
    """All pairs are worth the same, so that the seed alone chooses."""

    needs_members: ClassVar[int] = 0

    def __call__(self, gaps: Tensor) -> Tensor:
        """(N,) zeros."""
        return torch.zeros(len(gaps), dtype=torch.float64)


@dataclass(kw_only=True, slots=True)
class Uncertainty(Acquisition):
    """The entropy of the mean prediction, nats: pairs that a coin could decide; one model is enough."""

    def __call__(self, gaps: Tensor) -> Tensor:
        """(N,) from 0 to log 2."""
        return _entropy(torch.sigmoid(gaps.double()).mean(1))


@dataclass(kw_only=True, slots=True)
class Disagreement(Acquisition):
    """The variance over the ensemble of the predicted preference σ(Δr) (Christiano et al. 2017, 2.2.4)."""

    needs_members: ClassVar[int] = 2

    def __call__(self, gaps: Tensor) -> Tensor:
        """(N,) from 0 to ¼."""
        return torch.sigmoid(gaps.double()).var(1, correction=0)


@dataclass(kw_only=True, slots=True)
class InformationGain(Acquisition):
    """What the answer is expected to tell about which model is right, nats (Houlsby et al. 2011, eq. 2).

        I = H(mean_m p_m) − mean_m H(p_m),   p_m = σ(Δr_m)

    0 where all models predict the same, also where that is a coin's toss: such an answer is noise.
    """

    needs_members: ClassVar[int] = 2

    def __call__(self, gaps: Tensor) -> Tensor:
        """(N,) from 0 to log 2."""
        p = torch.sigmoid(gaps.double())
        return _entropy(p.mean(1)) - _entropy(p).mean(1)


def _entropy(p: Tensor) -> Tensor:
    """Of an event of probability ``p``, nats."""
    return torch.special.entr(p) + torch.special.entr(1 - p)
