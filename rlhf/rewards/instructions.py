"""IFEval's checkers (Zhou et al. 2023), for rows that ``python -m rlhf.data.instructions`` wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf.data.instructions import checker
from rlhf.rewards.verifiers import Verifier, column


@dataclass(kw_only=True, slots=True)
class Instructions(Verifier):
    """The share of the row's constraints that the response follows, each checked strictly."""

    def verify(self, prompt: str, response: str, row: dict[str, Any]) -> float:
        """In [0, 1]; 0 for an empty response, which some checkers would accept.

        Raises:
            ValueError: the package is not installed, or the row's constraints are unknown or malformed.
        """
        constraints = column(row, "instructions")
        if not isinstance(constraints, list) or not constraints:
            raise ValueError(
                f"the row's column 'instructions' must be a list of constraints, got {constraints!r}"
            )
        checkers = [checker(column(each, "id"), column(each, "arguments")) for each in constraints]
        if not response.strip():
            return 0.0
        return sum(bool(check(response)) for check in checkers) / len(checkers)
