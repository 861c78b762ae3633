"""The line that accuracy follows: so many points for twice the comparisons, so many for twice the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(kw_only=True, slots=True)
class Line:
    """accuracy = level + comparisons·log₂(n/1000) + parameters·log₂(N/10⁶), by ordinary least squares."""

    level: float
    """At 1,000 comparisons and a million parameters."""
    comparisons: float
    """Gained with twice the comparisons."""
    parameters: float
    """Gained with twice the parameters."""
    errors: tuple[float, float, float]
    """Standard errors of the three, from the residuals."""
    residual: float
    """Standard deviation of the residuals."""

    def at(self, comparisons: float, parameters: float) -> float:
        """The line's accuracy."""
        return self.level + sum(
            slope * float(torch.tensor(ratio, dtype=torch.float64).log2())
            for slope, ratio in (
                (self.comparisons, comparisons / 1000),
                (self.parameters, parameters / 1e6),
            )
        )


def fitted(points: Sequence[tuple[float, float, float]]) -> Line:
    """Least squares over runs; Stiennon et al. 2020 (section 4.3) state reward models' scaling in this form.

    Args:
        points: (comparisons, parameters, accuracy) of each run, with at least two of both.

    Raises:
        ValueError: the points do not determine a plane with an error.
    """
    table = torch.tensor(points, dtype=torch.float64)  # (M, 3)
    design = torch.stack(
        [torch.ones(len(table)).double(), (table[:, 0] / 1000).log2(), (table[:, 1] / 1e6).log2()], 1
    )
    if len(table) < 4 or torch.linalg.matrix_rank(design) < 3:
        raise ValueError(f"{len(table)} runs do not determine a line in comparisons and parameters")
    inverse = torch.linalg.inv(design.T @ design)
    solution = inverse @ design.T @ table[:, 2]
    variance = (table[:, 2] - design @ solution).square().sum() / (len(table) - 3)
    errors = (variance * inverse.diagonal()).sqrt().tolist()
    level, comparisons, parameters = solution.tolist()
    return Line(
        level=level,
        comparisons=comparisons,
        parameters=parameters,
        errors=(errors[0], errors[1], errors[2]),
        residual=float(variance.sqrt()),
    )
