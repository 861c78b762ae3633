from __future__ import annotations

import importlib
import signal
import time
from dataclasses import dataclass
from typing import Any

import pytest

from rlhf.rewards.verifiers import ExactMatch, Format, MathAnswer, Verifier


def verdict(verifier: Verifier, response: str, **row: Any) -> float:
    (score,) = verifier(["the prompt"], [response], [row])
    return score


@pytest.mark.parametrize(
    ("response", "answer", "score"),
    [
        (" Paris.", "paris", 1.0),
        ("Paris", "Rome", 0.0),
        ("Paris, Texas", "Paris", 0.0),
        ("12", 12, 1.0),
        ("Rome", ["Paris", "Rome"], 1.0),
        ("", "Paris", 0.0),
        ("", ".", 0.0),  # an answer of which nothing is left is nobody's
    ],
)
def test_exact_match_is_equality_after_normalising(response: str, answer: Any, score: float) -> None:
    assert verdict(ExactMatch(), response, answer=answer) == score


@pytest.mark.parametrize(
    ("response", "score"),
    [("Well. Answer: Rome", 1.0), ("Answer: Paris. Answer: Rome", 1.0), ("Rome", 0.0), ("Answer:", 0.0)],
)
def test_exact_match_reads_what_follows_the_mark(response: str, score: float) -> None:
    assert verdict(ExactMatch(after="Answer:", answer="city"), response, city="Rome") == score


@pytest.mark.parametrize(
    ("response", "answer", "score"),
    [
        ("So it is 12.", "12", 1.0),
        ("So it is 12.", 12, 1.0),
        (r"3 + 4 = 7, so \boxed{12}, not 7", "12", 1.0),
        (r"\boxed{12} apples and 7 pears", "7", 0.0),
        ("0.5", r"\frac{1}{2}", 1.0),
        ("0.333", "1/3", 0.0),
        ("12", "2 + 10 = 12\n#### 12", 1.0),
        ("10", "2 + 10 = 12\n#### 12", 0.0),
        ("12", r"therefore \boxed{12}", 1.0),
        (r"\boxed{x + 1}", "x + 1", 1.0),
        ("1", "x + 1", 0.0),
        ("x + 1", "x + 1", 0.0),  # not in a box, its last number is 1
        ("no idea", "12", 0.0),
        ("", "12", 0.0),
        (r"\boxed{", "12", 0.0),
        ("1/0", "1/0", 0.0),
        ("7", ["6", "7"], 1.0),
    ],
)
def test_math_answer_compares_numbers(response: str, answer: Any, score: float) -> None:
    assert verdict(MathAnswer(), response, answer=answer) == score


def test_format_matches_the_whole_response() -> None:
    tags = Format(pattern=r"<think>.*</think>\s*<answer>\d+</answer>\s*")
    assert verdict(tags, "<think>a\nb</think>\n<answer>12</answer>\n") == 1.0
    assert verdict(tags, "<think>a</think><answer>12</answer> and more") == 0.0
    assert verdict(tags, "so <think>a</think><answer>12</answer>") == 0.0


def test_format_refuses_what_is_no_regular_expression() -> None:
    with pytest.raises(ValueError, match=r"Format.pattern must be a regular expression, got '\(': missing"):
        Format(pattern="(")


@dataclass(kw_only=True, slots=True)
class Sleepy(Verifier):
    """Sleeps over every second response."""

    def verify(self, prompt: str, response: str, row: dict[str, Any]) -> float:
        time.sleep(60 if response == "slow" else 0)
        return 1.0


def test_a_response_that_takes_too_long_to_check_scores_0_and_the_others_are_checked() -> None:
    sleepy = Sleepy(timeout_seconds=0.05)
    assert sleepy(["a"] * 3, ["fast", "slow", "fast"], [{}] * 3) == [1.0, 0.0, 1.0]


@dataclass(kw_only=True, slots=True)
class SlowToLoad(Verifier):
    """Takes its time before the first check."""

    loaded: bool = False

    def prepare(self) -> None:
        time.sleep(0.2)
        self.loaded = True

    def verify(self, prompt: str, response: str, row: dict[str, Any]) -> float:
        return float(self.loaded)


def test_what_a_check_imports_is_not_counted_as_its_time() -> None:
    assert verdict(SlowToLoad(timeout_seconds=0.05), "a") == 1.0


@pytest.mark.parametrize(
    ("module", "load", "name"),
    [
        ("rlhf.rewards.instructions", "registry", "Instructions"),
        ("rlhf.rewards.math_expression", "_math_verify", "MathExpression"),
        ("rlhf.rewards.reasoning_gym", "_factory", "ReasoningGym"),
    ],
)
def test_no_clock_runs_while_a_package_is_imported(
    module: str, load: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import that was cut off leaves half a package, and every later check fails."""
    running: list[float] = []
    monkeypatch.setattr(f"{module}.{load}", lambda: running.append(signal.getitimer(signal.ITIMER_REAL)[0]))
    verifier = getattr(importlib.import_module(module), name)()
    verifier([], [], [])
    assert running == [0.0]


def test_a_limit_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"ExactMatch.timeout_seconds must be positive, got 0"):
        ExactMatch(timeout_seconds=0)


@pytest.mark.parametrize("verifier", [ExactMatch(), MathAnswer()])
def test_a_missing_column_is_named(verifier: Verifier) -> None:
    with pytest.raises(ValueError, match="the prompt's row has no column 'answer', it has 'genre', 'year'"):
        verdict(verifier, "12", genre="drama", year=1999)
    with pytest.raises(ValueError, match="the prompt's row has no column 'answer', it has 'genre'"):
        verdict(MathAnswer(), "a response without a number", genre="drama")
    with pytest.raises(ValueError, match="the prompt's row has no column 'answer', it has no other column"):
        verdict(verifier, "12")


@pytest.mark.parametrize("answer", [None, [], True, {"a": 1}, ["a", None]])
def test_an_answer_that_is_no_text_is_refused(answer: Any) -> None:
    with pytest.raises(ValueError, match="the row's column 'answer' must be text, a number or a list of"):
        verdict(ExactMatch(), "12", answer=answer)
