"""Whatever a function of somebody else does, the run ends in one line that names it."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest

from rlhf.rewards.functions import as_scores, call_function, import_function

PROMPTS, RESPONSES = ["how", "why", "when"], ["so", "", "now"]
COLUMNS: list[dict[str, Any]] = [{}, {}, {}]


def called(function: Any, timeout_seconds: float | None = None) -> Any:
    return call_function(
        function, PROMPTS, RESPONSES, COLUMNS, name="my:score", timeout_seconds=timeout_seconds
    )


def test_its_answer_is_returned_as_it_is() -> None:
    answer = object()
    assert called(lambda prompts, responses, columns: answer) is answer
    assert called(lambda *given: given) == (PROMPTS, RESPONSES, COLUMNS)


def test_an_error_names_function_place_and_response() -> None:
    def first_letter(prompts: list[str], responses: list[str], columns: list[Any]) -> list[float]:
        return [float(ord(response[0])) for response in responses]  # an empty response has none

    line = first_letter.__code__.co_firstlineno + 1
    message = (
        rf"^my:score raised IndexError: string index out of range \(.*test_functions\.py:{line}\) "
        r"on response 1, prompt 'why'$"
    )
    with pytest.raises(ValueError, match=message):
        called(first_letter)


def test_an_error_of_several_lines_becomes_one() -> None:
    def broken(*_: Any) -> list[float]:
        raise RuntimeError("one\n  two")

    with pytest.raises(ValueError, match=r"raised RuntimeError: one two \(.* on response 0, prompt 'how'"):
        called(broken)


def test_an_error_of_the_whole_batch_blames_no_response() -> None:
    def needs_few(prompts: list[str], *_: Any) -> list[float]:
        if len(prompts) > 2:
            raise OverflowError
        return [0.0] * len(prompts)

    with pytest.raises(ValueError, match=r"^my:score raised OverflowError \([^)]*:\d+\)$"):
        called(needs_few)


def test_the_place_is_in_the_functions_own_file() -> None:
    """The error itself is raised inside json."""
    import json

    def parses(prompts: list[str], *_: Any) -> list[float]:
        return [json.loads(prompt) for prompt in prompts]

    line = parses.__code__.co_firstlineno + 1
    with pytest.raises(ValueError, match=rf"test_functions\.py:{line}\) on response 0"):
        called(parses)


def test_a_hang_ends_with_the_place_where_it_was() -> None:
    def waits(*_: Any) -> list[float]:
        time.sleep(60)
        return []

    line = waits.__code__.co_firstlineno + 1
    message = rf"^my:score took longer than 0\.05 s over 3 responses \(.*test_functions\.py:{line}\)$"
    with pytest.raises(ValueError, match=message):
        called(waits, timeout_seconds=0.05)


def test_looking_for_the_culprit_takes_no_longer_than_a_call_may() -> None:
    def slow_alone(prompts: list[str], *_: Any) -> list[float]:
        if len(prompts) == 1:
            time.sleep(60)
        raise ValueError("no")

    started = time.monotonic()
    with pytest.raises(ValueError, match=r"^my:score raised ValueError: no \([^)]*\)$"):
        called(slow_alone, timeout_seconds=0.05)
    assert time.monotonic() - started < 5


def test_stopping_the_run_is_not_an_error_of_the_function() -> None:
    def interrupted(*_: Any) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        called(interrupted)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0, 2.0], r"score returned scores of shape \(2,\) for 3 responses"),
        ([[1.0], [2.0], [3.0]], r"score returned scores of shape \(3, 1\) for 3 responses"),
        (1.0, r"score returned scores of shape \(\) for 3 responses"),
        ([1.0, None, 2.0], "score must return a list of 3 numbers, got None for response 1"),
        (["good", "bad", 1.0], "score must return a list of 3 numbers, got 'good' for response 0"),
        ([1.0, 2.0, [3.0]], r"score must return a list of 3 numbers, got \[3.0\] for response 2"),
        (None, "score must return a list of 3 numbers, got NoneType"),
        ({"a": 1.0}, "score must return a list of 3 numbers, got dict"),
        ((float(row) for row in range(3)), "score must return a list of 3 numbers, got generator"),
    ],
)
def test_what_is_not_a_number_a_response_is_refused(scores: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_scores(scores, 3, "score")


def test_a_function_is_imported_by_its_path() -> None:
    assert import_function("math:sqrt") is math.sqrt


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("math.sqrt", "a function is given as package.module:name, got 'math.sqrt'"),
        (":sqrt", "a function is given as package.module:name, got ':sqrt'"),
        ("math:", "a function is given as package.module:name, got 'math:'"),
        ("no_such_module:f", "cannot import no_such_module:f: No module named 'no_such_module'"),
        ("math:no_such_name", "cannot import math:no_such_name: .*no attribute 'no_such_name'"),
        ("math:pi", "math:pi is a float, not a function"),
    ],
)
def test_what_is_no_function_is_refused(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        import_function(path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_package\n", "No module named 'no_such_package'"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def f(:\n", "SyntaxError: "),
    ],
)
def test_a_module_that_cannot_be_imported_says_why(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"broken_reward_{len(source)}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=f"^cannot import {name}:score: {message}"):
        import_function(f"{name}:score")
