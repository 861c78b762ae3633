"""Mathematical expressions compared by the package ``math-verify``, which reads LaTeX into sympy."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from rlhf.rewards.verifiers import Verifier, answers


@dataclass(kw_only=True, slots=True)
class MathExpression(Verifier):
    """The expression that ``math-verify`` finds in the response equals the row's: x+1 is 1+x."""

    answer: str = "answer"
    """Column with the answer: LaTeX, a number, or a list of those, any of which is right."""

    def prepare(self) -> None:
        """The package, with sympy."""
        _math_verify()

    def verify(self, prompt: str, response: str, row: dict[str, Any]) -> float:
        """1 or 0; 0 where the response holds no expression.

        Raises:
            ValueError: the package is not installed, or it cannot read the row's answer.
        """
        parse, equal = _math_verify()
        found = parse(response)
        return float(any(equal(_gold(answer), found) for answer in answers(row, self.answer)))


@cache
def _gold(answer: str) -> Any:
    parse, _ = _math_verify()
    read = parse(answer) or parse(f"${answer}$")
    if not read:
        raise ValueError(f"math-verify reads no expression in the answer {answer!r}")
    return read


@cache
def _math_verify() -> tuple[Any, Any]:
    """Its ``parse`` and ``verify`` without its own alarm, which would put out ours."""
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise ValueError('math-verify is not installed; get it with: pip install "rlhf[tasks]"') from error
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of having no alarm
    return partial(parse, parsing_timeout=None), partial(verify, timeout_seconds=None)
