"""The curve that accuracy follows: a power law of the share of wrong pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(kw_only=True, slots=True)
class PowerLaw:
    """1 − accuracy = wrong · (n/1000)^−comparisons · (N/10⁶)^−parameters."""

    wrong: float
    """Share of wrong pairs at n = 1,000 comparisons and N = a million parameters."""
    comparisons: float
    """Exponent of n."""
    parameters: float
    """Exponent of N."""
    errors: tuple[float, float, float]
    """Standard errors of log wrong and of the exponents, from the residuals."""
    residual: float
    """Standard deviation of the residuals of log(1 − accuracy)."""

    def accuracy(self, comparisons: float, parameters: float) -> float:
        """The curve's."""
        return (
            1
            - self.wrong * (comparisons / 1000) ** -self.comparisons * (parameters / 1e6) ** -self.parameters
        )


def fitted(points: Sequence[tuple[float, float, float]]) -> PowerLaw:
    """Ordinary least squares of log(1 − accuracy) on log n and log N over runs.

    The form is that of Hestness et al. 2017 without a floor: there are too few comparisons here to tell one.

    Args:
        points: (comparisons, parameters, accuracy < 1) of each run, with at least two of both.

    Raises:
        ValueError: the points do not determine a curve and its error.
    """
    table = torch.tensor(points, dtype=torch.float64).reshape(-1, 3)
    n, size, wrong = table[:, 0], table[:, 1], 1 - table[:, 2]
    design = torch.stack([torch.ones_like(n), -(n / 1000).log(), -(size / 1e6).log()], 1)  # (M, 3)
    if len(table) < 4 or torch.linalg.matrix_rank(design) < 3:
        raise ValueError(f"{len(table)} runs do not determine a curve in comparisons and parameters")
    inverse = torch.linalg.inv(design.T @ design)
    solution = inverse @ design.T @ wrong.log()
    variance = (wrong.log() - design @ solution).square().sum() / (len(table) - 3)
    level, comparisons, parameters = solution.tolist()
    errors = (variance * inverse.diagonal()).sqrt().tolist()
    return PowerLaw(
        wrong=math.exp(level),
        comparisons=comparisons,
        parameters=parameters,
        errors=(errors[0], errors[1], errors[2]),
        residual=float(variance.sqrt()),
    )
