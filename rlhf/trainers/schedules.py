"""Learning-rate schedules: a factor of the first learning rate for each step (numerics D43)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class Schedule(ABC):
    """A factor in [0, 1] for step ``step`` of ``total``, the same for every parameter group."""

    warmup: float = 0.0
    """Share of the steps, in [0, 1), over which the factor first rises linearly to 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError(f"{type(self).__name__}.warmup must be in [0, 1), got {self.warmup}")

    def __call__(self, step: int, total: int) -> float:
        """The factor of step ``step`` in 0 … total − 1."""
        rising = math.ceil(self.warmup * total)
        if step < rising:
            return (step + 1) / (rising + 1)
        return self.after_warmup((step - rising) / (total - rising))

    @abstractmethod
    def after_warmup(self, progress: float) -> float:
        """The factor when ``progress`` in [0, 1) of the remaining steps are done."""


@dataclass(kw_only=True, slots=True)
class Constant(Schedule):
    """The first learning rate throughout."""

    def after_warmup(self, progress: float) -> float:
        """Always 1."""
        return 1.0


@dataclass(kw_only=True, slots=True)
class Linear(Schedule):
    """lr·(1 − u/U): the last step is the last one above zero."""

    def after_warmup(self, progress: float) -> float:
        """A straight line from 1 towards 0."""
        return 1 - progress


@dataclass(kw_only=True, slots=True)
class Cosine(Schedule):
    """Half a cosine from 1 down to ``final``."""

    final: float = 0.1
    """The factor that the last steps approach, in [0, 1]."""

    def __post_init__(self) -> None:
        Schedule.__post_init__(self)
        if not 0 <= self.final <= 1:
            raise ValueError(f"Cosine.final must be in [0, 1], got {self.final}")

    def after_warmup(self, progress: float) -> float:
        """final + (1 − final)·(1 + cos πp)/2."""
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2
