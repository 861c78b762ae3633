"""Bootstrap intervals (Efron 1979): what the numbers would be on other rows like these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.seeding import generator

BLOCK = 2**22
"""Numbers held at once."""
INTERVAL = (0.025, 0.975)
"""Quantiles of the resamples: a 95 % interval."""


@dataclass(kw_only=True, slots=True)
class Estimate:
    """A number and its 95 % percentile interval."""

    value: float
    low: float
    high: float

    @property
    def reach(self) -> tuple[float, float]:
        """How far the interval goes below and above the value; not negative, whatever was rounded."""
        return max(self.value - self.low, 0.0), max(self.high - self.value, 0.0)


@dataclass(kw_only=True, slots=True)
class Bootstrap:
    """Resampling of rows with replacement."""

    resamples: int = 2000
    """Number of resamples behind an interval."""
    seed: int = 0

    def means(self, values: Tensor, *names: str | int) -> Tensor:
        """Means of resamples.

        Args:
            values: (N,) or (N, K), a row each.
            names: of the random stream, beside the seed.

        Returns:
            (resamples,) or (resamples, K) float64.
        """
        stream, rows = generator(self.seed, "bootstrap", *names), values.double()
        width = max(values[0].numel(), 1) * len(values)
        blocks = (
            rows[torch.randint(len(rows), (size, len(rows)), generator=stream)].mean(1)
            for size in block_sizes(self.resamples, width)
        )
        return torch.cat(list(blocks))

    def mean(self, values: Tensor, *names: str | int) -> Estimate:
        """The mean of (N,) values."""
        return estimate(float(values.double().mean()), self.means(values, *names))


def block_sizes(count: int, width: int) -> Iterator[int]:
    """``count`` in parts of at most ``BLOCK`` numbers, ``width`` to each."""
    size = max(BLOCK // width, 1)
    yield from (min(size, count - first) for first in range(0, count, size))


def estimate(value: float, resampled: Tensor) -> Estimate:
    """``value`` with the interval that its resamples (R,) span."""
    levels = torch.tensor(INTERVAL, dtype=torch.float64)
    low, high = torch.quantile(resampled.double(), levels).tolist()
    return Estimate(value=value, low=low, high=high)


def weighted_sum(weights: Sequence[float], parts: Sequence[Tensor]) -> Tensor:
    """Σ weight · part over tensors of one shape."""
    return torch.stack([weight * part for weight, part in zip(weights, parts, strict=True)]).sum(0)
