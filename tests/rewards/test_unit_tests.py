"""The verifier around the sandbox: where the program and its tests come from, and what is scored."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf.rewards.unit_tests import UnitTests, code_in

SQUARE = "def f(x): return x * x"
TESTS = ["assert f(2) == 4", "assert f(3) == 9", "assert f(0) == 0"]

pytestmark = pytest.mark.usefixtures("judge")  # skipped where there is no sandbox


def score(verifier: UnitTests, response: str, prompt: str = "", **row: Any) -> float:
    (found,) = verifier([prompt], [response], [row])
    return found


@pytest.mark.parametrize(
    ("response", "code"),
    [
        ("x = 1", "x = 1"),
        ("Here:\n```python\nx = 1\n```\nand\n```\ny = 2\n```", "x = 1\n"),
        ("```\nx = 1", "x = 1"),
        ("a `x` b", "a `x` b"),
        ("```py\ns = '```'\n```", "s = '```'\n"),
        ("", ""),
    ],
)
def test_the_program_is_the_first_block_or_the_whole(response: str, code: str) -> None:
    assert code_in(response) == code


def test_all_tests_must_pass() -> None:
    verifier = UnitTests()
    assert score(verifier, SQUARE, tests=TESTS) == 1.0
    assert score(verifier, SQUARE, tests="\n".join(TESTS)) == 1.0
    assert score(verifier, "def f(x): return x + 2", tests=TESTS) == 0.0
    assert score(verifier, f"It is:\n```python\n{SQUARE}\n```\n", tests=TESTS) == 1.0
    assert score(verifier, "", tests=TESTS) == 0.0


def test_a_share_of_the_tests_counts_where_it_is_wanted() -> None:
    assert score(UnitTests(fraction=True), "def f(x): return x + x", tests=TESTS) == pytest.approx(2 / 3)


def test_a_completion_is_run_behind_its_prompt() -> None:
    row = {"tests": TESTS}
    assert score(UnitTests(with_prompt=True), " x ** 2", "f = lambda x:", **row) == 1.0
    assert score(UnitTests(), " x ** 2", "f = lambda x:", **row) == 0.0


def test_columns_are_named_by_the_configuration() -> None:
    row = {"test": "assert max(1) == 2", "name": "max"}
    verifier = UnitTests(tests="test", entry_point="name")
    assert score(verifier, "def max(x): return x + 1", **row) == 1.0


def test_responses_keep_their_own_rows() -> None:
    rows = [{"tests": f"assert f() == {n}"} for n in range(6)]
    responses = [f"f = lambda: {n if n % 2 else -1}" for n in range(6)]
    assert UnitTests(workers=3)([""] * 6, responses, rows) == [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    assert UnitTests().verify("", responses[1], rows[1]) == 1.0


def test_one_that_takes_too_long_scores_0() -> None:
    verifier = UnitTests(timeout_seconds=0.3)
    assert score(verifier, "import time\ntime.sleep(30)", tests="pass") == 0.0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": 1}, "the prompt's row has no column 'tests', it has 'answer'"),
        ({"tests": []}, "the row's column 'tests' must be Python source or a list of it, got []"),
        ({"tests": [1]}, r"the row's column 'tests' must be Python source or a list of it, got [1]"),
        ({"tests": " "}, "must be Python source"),
        ({"tests": "f(", "entry_point": None}, "the tests cannot be run: '(' was never closed"),
        ({"tests": "f()", "entry_point": 1}, "the row's column 'entry_point' must be a name, got 1"),
    ],
)
def test_a_row_that_cannot_be_checked_is_an_error(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        score(UnitTests(), SQUARE, **row)
    assert message in str(refusal.value)


@pytest.mark.parametrize("name", ["cpu_seconds", "memory_mib", "file_kib", "processes", "workers"])
def test_limits_are_at_least_1(name: str) -> None:
    with pytest.raises(ValueError, match=rf"UnitTests\.{name} must be at least 1, got 0"):
        UnitTests(**{name: 0})
