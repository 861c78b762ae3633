from __future__ import annotations

import signal
import sys
import time
from typing import Any

import pytest

from rlhf.rewards.math_expression import MathExpression, _math_verify

pytest.importorskip("math_verify")


def verdict(response: str, answer: Any, **fields: Any) -> float:
    (score,) = MathExpression(**fields)(["the prompt"], [response], [{"answer": answer}])
    return score


@pytest.mark.parametrize(
    ("response", "answer", "score"),
    [
        (r"so $x = \frac{1}{2}$", "0.5", 1.0),
        (r"\boxed{1 + x}", "$x+1$", 1.0),
        (r"\boxed{x + 1}", "x+1", 1.0),
        (r"\boxed{x - 1}", "x+1", 0.0),
        (r"\boxed{\sqrt{144}}", 12, 1.0),
        ("the answer is 12.", "12", 1.0),
        ("the answer is 13.", "12", 0.0),
        ("12", ["11", "12"], 1.0),
    ],
)
def test_expressions_that_mean_the_same_are_equal(response: str, answer: Any, score: float) -> None:
    assert verdict(response, answer) == score


@pytest.mark.parametrize(
    "response",
    ["", "zzz", r"\boxed{", "{{{{", "(" * 300, r"\boxed{" * 300, r"$\frac{1}{0}$", "1" * 10_000, "\\"],
)
def test_malformed_responses_score_0(response: str) -> None:
    assert verdict(response, "12") == 0.0


def test_an_expression_that_takes_for_ever_scores_0_and_leaves_no_alarm() -> None:
    started = time.monotonic()
    assert verdict("9**9**9**9", "12", timeout_seconds=0.3) == 0.0
    assert time.monotonic() - started < 10
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_an_answer_without_an_expression_is_refused() -> None:
    with pytest.raises(ValueError, match="math-verify reads no expression in the answer ''"):
        verdict("12", "")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    _math_verify.cache_clear()
    with pytest.raises(ValueError, match=r'math-verify is not installed; .* pip install "rlhf\[tasks\]"'):
        verdict("12", "12")
    _math_verify.cache_clear()
