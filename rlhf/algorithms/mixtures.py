"""Who writes the prefixes that a student learns on: β_i·teacher + (1 − β_i)·student in round i (DAgger).

The coin is tossed for every token: the policy that Ross et al. 2011 analyse is the student alone over T steps
with probability (1 − β_i)^T (lemma 4.1). Each token is then a draw from the mixture of the two distributions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class Mixture(ABC):
    """The teacher's share of the tokens, round by round."""

    @abstractmethod
    def __call__(self, number: int) -> float:
        """β of round ``number``, from 0 on; in [0, 1]."""


@dataclass(kw_only=True, slots=True)
class Constant(Mixture):
    """The same share in every round."""

    beta: float = 0.0
    """Probability that the teacher writes a token: 0 is on-policy, 1 behaviour cloning."""

    def __post_init__(self) -> None:
        """Refuse what is no probability."""
        if not 0 <= self.beta <= 1:
            raise ValueError(f"Constant.beta must lie in [0, 1], got {self.beta}")

    def __call__(self, number: int) -> float:
        """β."""
        return self.beta


@dataclass(kw_only=True, slots=True)
class Geometric(Mixture):
    """decay^i: the teacher alone at first, then less and less of it."""

    decay: float = 0.5
    """What is left of the teacher's share after a round."""

    def __post_init__(self) -> None:
        """Refuse what does not decay."""
        if not 0 < self.decay < 1:
            raise ValueError(f"Geometric.decay must lie in (0, 1), got {self.decay}")

    def __call__(self, number: int) -> float:
        """decay^i."""
        return self.decay**number


@dataclass(kw_only=True, slots=True)
class Linear(Mixture):
    """max(0, 1 − i/rounds): the teacher alone at first, the student alone from round ``rounds`` on."""

    rounds: int = 10
    """Rounds in which the teacher takes part; 1 is the parameter-free choice of Ross et al. 2011."""

    def __post_init__(self) -> None:
        """Refuse no round at all."""
        if self.rounds < 1:
            raise ValueError(f"Linear.rounds must be at least 1, got {self.rounds}")

    def __call__(self, number: int) -> float:
        """A straight line from 1 to 0."""
        return max(0.0, 1 - number / self.rounds)
