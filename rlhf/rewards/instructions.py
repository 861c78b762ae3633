"""IFEval's checkers (Zhou et al. 2023), for rows that ``python -m rlhf.data.instructions`` wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf.data.instructions import checker, registry
from rlhf.rewards.verifiers import Verifier, column


@dataclass(kw_only=True, slots=True)
class Instructions(Verifier):
    """The share of the row's constraints that the response follows, each checked strictly."""

    every: bool = False
    """1 where all are followed, else 0: IFEval's accuracy of prompts; the share is that of instructions."""

    def prepare(self) -> None:
        """The checkers and what they import."""
        registry()

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
        followed = [bool(check(response)) for check in checkers]
        return float(all(followed)) if self.every else sum(followed) / len(followed)
