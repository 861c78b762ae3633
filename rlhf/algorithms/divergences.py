"""What a student is to make small: how far its next-token distribution is from the teacher's.

One number per token, over the whole vocabulary, with the gradient of the student's logits
(`rlhf.ops.divergences`). All are 0 where the two agree and positive elsewhere; they differ in what a student
does that cannot agree everywhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from rlhf.ops.divergences import Diverged, forward_kl, jensen_shannon, reverse_kl


@dataclass(kw_only=True, slots=True)
class Divergence(ABC):
    """Of a student's distribution from its teacher's."""

    @abstractmethod
    def __call__(self, student: Tensor, teacher: Tensor) -> Diverged:
        """Values (…) and gradients (…, V) from the log-probs (…, V) of both."""


@dataclass(kw_only=True, slots=True)
class ForwardKL(Divergence):
    """KL(teacher‖student): covers everything that the teacher does (Hinton et al. 2015).

    The expected −log-prob of a token drawn from the teacher, but for its entropy: imitation with soft labels.
    """

    def __call__(self, student: Tensor, teacher: Tensor) -> Diverged:
        """See `rlhf.ops.divergences.forward_kl`."""
        return forward_kl(student, teacher)


@dataclass(kw_only=True, slots=True)
class ReverseKL(Divergence):
    """KL(student‖teacher): keeps to what the teacher likes most (Gu et al. 2023)."""

    def __call__(self, student: Tensor, teacher: Tensor) -> Diverged:
        """See `rlhf.ops.divergences.reverse_kl`."""
        return reverse_kl(student, teacher)


@dataclass(kw_only=True, slots=True)
class JensenShannon(Divergence):
    """The generalised Jensen–Shannon divergence, between the two (GKD; Agarwal et al. 2023)."""

    beta: float = 0.5
    """The teacher's share of the mixture, in (0, 1). Near 0 it is this times forward_kl, near 1 what is left
    to 1 times reverse_kl: raise the learning rate accordingly."""

    def __post_init__(self) -> None:
        """Refuse the ends, where it vanishes."""
        if not 0 < self.beta < 1:
            raise ValueError(
                f"JensenShannon.beta must lie in (0, 1), got {self.beta}: "
                "the ends are forward_kl and reverse_kl"
            )

    def __call__(self, student: Tensor, teacher: Tensor) -> Diverged:
        """See `rlhf.ops.divergences.jensen_shannon`."""
        return jensen_shannon(student, teacher, beta=self.beta)
