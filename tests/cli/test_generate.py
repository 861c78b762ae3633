"""``rlhf generate`` writes what it sampled, and the best of n is the best of those n."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def responses(rlhf: Any, folder: Path, name: str, *arguments: str) -> list[dict[str, Any]]:
    outcome = rlhf("generate", f"name={name}", *arguments)
    assert outcome.status == 0, outcome.err
    file = folder / "runs" / name / "responses.jsonl"
    rows = [json.loads(line) for line in file.open(encoding="utf-8")]
    assert outcome.out.endswith(f"{len(rows)} responses: {file}\n")
    return rows


@pytest.fixture
def arguments(workspace: Any) -> list[str]:
    return [f"model.path={workspace.sft}", f"prompts.path={workspace.prompts}", "decoding.max_new_tokens=4"]


def test_every_prompt_gets_its_samples_in_order(rlhf: Any, tmp_path: Path, arguments: list[str]) -> None:
    rows = responses(rlhf, tmp_path, "plain", *arguments, "samples=2")
    assert [row["prompt"] for row in rows[:6]] == ["the film"] * 2 + ["a dull"] * 2 + ["the sea"] * 2
    assert len(rows) == 12 * 2
    assert all(set(row) == {"prompt", "response", "ended"} for row in rows)


def test_greedy_responses_to_one_prompt_are_one(rlhf: Any, tmp_path: Path, arguments: list[str]) -> None:
    rows = responses(rlhf, tmp_path, "greedy", *arguments, "samples=3", "decoding=greedy")
    for first in range(0, len(rows), 3):
        assert len({row["response"] for row in rows[first : first + 3]}) == 1


def test_best_of_n_keeps_the_highest_score_of_the_same_n(
    rlhf: Any, tmp_path: Path, workspace: Any, arguments: list[str]
) -> None:
    scored = [*arguments, "reward=model", f"reward.path={workspace.reward}"]
    everything = responses(rlhf, tmp_path, "all", *scored, "samples=3")
    kept = responses(rlhf, tmp_path, "best", *scored, "best_of=3")
    best = [max(row["score"] for row in everything[first : first + 3]) for first in range(0, 36, 3)]
    assert [row["score"] for row in kept] == pytest.approx(best, rel=1e-5)  # other batches, other rounding
    assert len({row["score"] for row in everything[:3]}) > 1


def test_best_without_a_reward_is_refused(rlhf: Any, tmp_path: Path, arguments: list[str]) -> None:
    outcome = rlhf("generate", *arguments, "best_of=4")
    assert outcome.status == 1
    assert outcome.err == "rlhf generate: best_of=4 needs a reward to tell which is best, got reward=none\n"
    assert not (tmp_path / "runs" / "generate" / "responses.jsonl").exists()
