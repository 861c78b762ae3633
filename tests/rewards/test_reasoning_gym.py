from __future__ import annotations

import sys
from typing import Any

import pytest

from rlhf.data.reasoning_gym import problems
from rlhf.rewards.reasoning_gym import ReasoningGym, _factory

pytest.importorskip("reasoning_gym")

TASKS = (
    "chain_sum",
    "products",
    "gcd",
    "number_sorting",
    "spell_backward",
    "prime_factorization",
    "countdown",
)


def verdict(verifier: ReasoningGym, response: str, row: dict[str, Any]) -> float:
    (score,) = verifier(["the prompt"], [response], [row])
    return score


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, Any]]]:
    return {task: problems(task, 5, seed=0, settings={}) for task in TASKS}


@pytest.mark.parametrize("task", TASKS)
def test_the_right_answer_scores_1(task: str, rows: dict[str, list[dict[str, Any]]]) -> None:
    for row in rows[task]:
        assert verdict(ReasoningGym(), row["response"], row) == 1.0


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("response", ["", "  \n", "zzz", "0", "yes", "1 2 3"])
def test_a_constant_answer_scores_0(task: str, response: str, rows: dict[str, list[dict[str, Any]]]) -> None:
    """Though the tasks themselves give 0.01 to any text, and prime_factorization raises at words."""
    for row in rows[task]:
        assert verdict(ReasoningGym(), response, row) == 0.0


def test_partial_credit_is_kept_where_it_is_wanted(rows: dict[str, list[dict[str, Any]]]) -> None:
    row = rows["countdown"][0]
    assert verdict(ReasoningGym(partial_credit=True), "zzz", row) == pytest.approx(0.01)


def test_the_answer_may_stand_after_a_mark(rows: dict[str, list[dict[str, Any]]]) -> None:
    row = rows["chain_sum"][0]
    marked = ReasoningGym(after="Answer:")
    assert verdict(marked, f"Well. Answer: {row['answer']}", row) == 1.0
    assert verdict(marked, row["answer"], row) == 0.0


def test_rows_of_another_origin_are_refused() -> None:
    with pytest.raises(ValueError, match="the prompt's row has no column 'task', it has 'answer'"):
        verdict(ReasoningGym(), "1", {"answer": "1"})
    with pytest.raises(ValueError, match="reasoning-gym has no task 'sums'"):
        verdict(ReasoningGym(), "1", {"task": "sums", "entry": {}})


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    _factory.cache_clear()
    with pytest.raises(ValueError, match=r'reasoning-gym is not installed; .* pip install "rlhf\[tasks\]"'):
        verdict(ReasoningGym(), "1", {"task": "chain_sum", "entry": {}})
    _factory.cache_clear()
