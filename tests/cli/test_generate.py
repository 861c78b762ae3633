"""``rlhf generate`` writes what it sampled, and the best of n is the best of those n."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.batch import Rollout
from rlhf.cli import generate as command


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


# Going on with what was begun


@pytest.fixture
def scored(arguments: list[str], workspace: Any) -> list[str]:
    return [*arguments, "reward=model", f"reward.path={workspace.reward}", "samples=2", "best_of=2"]


@pytest.mark.parametrize("kept", [0, 1, 4, 5, 23, 24])
@pytest.mark.parametrize("torn", [b"", b'{"prompt": "the fi'])
def test_a_run_that_was_cut_goes_on_to_the_same_file(
    rlhf: Any, tmp_path: Path, scored: list[str], kept: int, torn: bytes
) -> None:
    whole = responses(rlhf, tmp_path, "cut", *scored, "micro_batch_size=8")
    file = tmp_path / "runs" / "cut" / "responses.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:kept]) + torn)
    again = responses(rlhf, tmp_path, "cut", *scored, "micro_batch_size=12", "resume=true")
    assert file.read_bytes().splitlines()[: kept // 2 * 2] == b"".join(lines).splitlines()[: kept // 2 * 2]
    scores = [[row.pop("score") for row in rows] for rows in (again, whole)]
    assert again == whole
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)  # other batches, other rounding


def test_nothing_to_go_on_with_is_refused(rlhf: Any, tmp_path: Path, arguments: list[str]) -> None:
    outcome = rlhf("generate", "name=absent", *arguments, "resume=true")
    assert outcome.status == 1
    assert "resume=true, but " in outcome.err
    assert "runs/absent holds no responses.jsonl to go on with\n" in outcome.err


def test_a_file_is_not_gone_on_with_under_other_settings(
    rlhf: Any, tmp_path: Path, arguments: list[str]
) -> None:
    responses(rlhf, tmp_path, "other", *arguments)
    file = tmp_path / "runs" / "other" / "responses.jsonl"
    before = file.read_bytes()
    outcome = rlhf("generate", "name=other", *arguments, "resume=true", "seed=5")
    assert outcome.status == 1
    assert "was begun with other settings (seed: 0; now seed: 5): choose another name=…" in outcome.err
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ({"prompt": "another", "response": "", "ended": True}, "line 2 answers another prompt"),
        (["the film"], "line 2 is no response of rlhf generate"),
    ],
)
def test_lines_that_answer_no_prompt_are_refused(
    rlhf: Any, tmp_path: Path, arguments: list[str], line: Any, complaint: str
) -> None:
    responses(rlhf, tmp_path, "strange", *arguments)
    file = tmp_path / "runs" / "strange" / "responses.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    lines[1] = json.dumps(line)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    outcome = rlhf("generate", "name=strange", *arguments, "resume=true")
    assert outcome.status == 1
    assert complaint in outcome.err
    assert file.read_text(encoding="utf-8").splitlines() == lines


# Where responses end, and what is cut off


def test_a_stop_text_ends_the_response(rlhf: Any, tmp_path: Path, arguments: list[str]) -> None:
    free = responses(rlhf, tmp_path, "free", *arguments, "samples=4")
    letter = max("aeiou", key=lambda vowel: sum(vowel in row["response"] for row in free))
    stopped = responses(rlhf, tmp_path, "stopped", *arguments, "samples=4", f"stop=[{letter}]")
    for row, other in zip(stopped, free, strict=True):
        assert other["response"].startswith(row["response"])
        assert (letter in row["response"]) == (letter in other["response"])
        assert row["ended"] == (other["ended"] or letter in other["response"])
    assert sum(len(row["response"]) for row in stopped) < sum(len(row["response"]) for row in free)


def test_one_token_left_is_the_greedy_one(rlhf: Any, tmp_path: Path, arguments: list[str]) -> None:
    greedy = responses(rlhf, tmp_path, "one", *arguments, "decoding=greedy")
    one = responses(rlhf, tmp_path, "cut", *arguments, "decoding=truncated", "decoding.top_k=1")
    assert one == greedy


# Control prefixes


def test_the_policy_reads_the_prefix_and_the_rows_do_not(
    rlhf: Any, tmp_path: Path, arguments: list[str]
) -> None:
    asked = tmp_path / "asked.jsonl"
    texts = ["the film", "a dull", "the sea"]
    asked.write_text("".join(json.dumps({"prompt": f"is fine {text}"}) + "\n" for text in texts))
    many = [*arguments, "samples=16", "decoding.max_new_tokens=16"]
    behind = responses(rlhf, tmp_path, "behind", *many, "prompts.limit=3", "prefix='is fine '")
    told = responses(rlhf, tmp_path, "told", *many, f"prompts.path={asked}")
    assert [row["prompt"] for row in behind[::16]] == texts
    assert [row | {"prompt": ""} for row in behind] == [row | {"prompt": ""} for row in told]
    bare = responses(rlhf, tmp_path, "bare", *many, "prompts.limit=3")
    assert [row["response"] for row in behind] != [row["response"] for row in bare]


def test_a_reward_reads_the_bare_prompt_and_the_response(
    rlhf: Any, tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Rollout] = []

    def reward(rollout: Rollout, texts: Any) -> torch.Tensor:
        seen.append(rollout)
        return torch.arange(len(rollout)).float()

    monkeypatch.setattr(command, "load_reward", lambda *_, **__: reward)
    scored = [*arguments, "prompts.limit=3", "reward=model", "reward.path=unread", "samples=2"]
    bare = responses(rlhf, tmp_path, "bare", *scored)
    assert [row["score"] for row in bare] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert {row["best_of"] for row in bare} == {1}
    responses(rlhf, tmp_path, "behind", *scored, "prefix='is fine '")
    without, behind = seen
    width = without.prompt_mask.shape[1]
    assert behind.tokens[:, :width].equal(without.tokens[:, :width])
    assert behind.prompt_mask.equal(without.prompt_mask)
    assert not behind.responses.equal(without.responses)


def test_a_kept_response_says_of_how_many_it_is_the_best(
    rlhf: Any, tmp_path: Path, arguments: list[str], workspace: Any
) -> None:
    scored = [*arguments, "reward=model", f"reward.path={workspace.reward}", "prompts.limit=3"]
    rows = responses(rlhf, tmp_path, "three", *scored, "best_of=3")
    assert all(set(row) == {"prompt", "response", "ended", "score", "best_of"} for row in rows)
    assert [row["best_of"] for row in rows] == [3, 3, 3]


def test_a_file_with_more_responses_than_prompts_is_refused(
    rlhf: Any, tmp_path: Path, arguments: list[str], workspace: Any
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_bytes(workspace.prompts.read_bytes())
    given = [*arguments, f"prompts.path={prompts}"]
    responses(rlhf, tmp_path, "shorter", *given)
    prompts.write_text('{"prompt": "the film"}\n')
    outcome = rlhf("generate", "name=shorter", *given, "resume=true")
    assert outcome.status == 1
    assert "line 2 answers another prompt than that of the prompts' file\n" in outcome.err
