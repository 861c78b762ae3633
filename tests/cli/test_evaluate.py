"""``rlhf evaluate`` puts policies side by side and checks reward and judge against human labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

JUDGE = """
def length(prompts, responses, columns):
    return [float(len(response)) for response in responses]
"""


@pytest.fixture
def report(rlhf: Any, workspace: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    (tmp_path / "length_judge.py").write_text(JUDGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    outcome = rlhf(
        "evaluate",
        "name=report",
        f"reference.path={workspace.sft}",
        f"+policies={{same: {workspace.sft}}}",
        f"reward.path={workspace.reward}",
        "best_of=[2,3]",
        "judge=length_judge:length",
        f"prompts.path={workspace.prompts}",
        f"pairs.path={workspace.pairs}",
        "sampling.max_new_tokens=4",
    )
    assert outcome.status == 0, outcome.err
    folder = tmp_path / "runs" / "report"
    assert (folder / "policies.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "report.md").read_text().strip() in outcome.out
    assert "The best of n responses of reference, estimated from 3 a prompt:\n\n| n | score" in outcome.out
    return json.loads((folder / "report.json").read_text())


def test_a_row_for_each_policy(report: dict[str, Any]) -> None:
    assert [row["policy"] for row in report["policies"]] == ["reference", "best of 2", "best of 3", "same"]
    assert {name: len(rows) for name, rows in report["responses"].items()} == {
        "reference": 12,
        "best of 2": 12,
        "best of 3": 12,
        "same": 12,
    }


def test_a_policy_that_is_the_reference_answers_as_it_does(report: dict[str, Any]) -> None:
    """The same weights and random numbers: the same texts, and no KL in either form."""
    reference, same = report["responses"]["reference"], report["responses"]["same"]
    assert [row["text"] for row in same] == [row["text"] for row in reference]
    assert all(abs(row["kl"]) < 1e-5 and abs(row["exact_kl"]) < 1e-5 for row in same)


def test_judge_sees_the_responses(report: dict[str, Any]) -> None:
    assert all(row["judge"] == len(row["text"]) for row in report["responses"]["reference"])


def test_agreement_with_human_labels_counts_every_pair(report: dict[str, Any]) -> None:
    """' is good' is always chosen over ' is bad', and one letter longer, so that the judge is right."""
    pairs = {row["scorer"]: row for row in report["pairs"]}
    assert set(pairs) == {"reward", "length"}
    assert pairs["length"]["accuracy"] == 1.0
    assert all(row["pairs"] == 12 for row in pairs.values())


def test_the_best_of_n_has_a_curve_up_to_the_largest_n(report: dict[str, Any]) -> None:
    """From as many samples as n the estimate is the mean of the best, the row of the table."""
    one, two, three = report["best_of_n"]
    assert (one["n"], two["n"], three["n"]) == (1, 2, 3)
    row = report["policies"][2]
    assert three["score"] == pytest.approx(row["score"])
    assert three["score_error"] == pytest.approx(row["score_error"])
    assert one["score"] <= two["score"] <= three["score"]
    assert three["kl_bound"] == row["kl"]
    few, many = (report["responses"][f"best of {n}"] for n in (2, 3))
    assert [row["prompt"] for row in few] == [row["prompt"] for row in many]
    assert all(b["score"] >= a["score"] for a, b in zip(few, many, strict=True))


def test_a_policy_behind_a_prefix_differs_from_itself_without(
    rlhf: Any, workspace: Any, tmp_path: Path
) -> None:
    arguments = [
        f"reference.path={workspace.sft}",
        f"reward.path={workspace.reward}",
        f"prompts.path={workspace.prompts}",
        "sampling.max_new_tokens=4",
        f"+policies={{same: {workspace.sft}, asked: {workspace.sft}}}",
    ]
    outcome = rlhf("evaluate", "name=prefix", *arguments, '+prefixes={asked: "is fine "}')
    assert outcome.status == 0, outcome.err
    content = json.loads((tmp_path / "runs" / "prefix" / "report.json").read_text())
    same, asked = (content["responses"][name] for name in ("same", "asked"))
    assert [row["prompt"] for row in asked] == [row["prompt"] for row in same]
    assert all(row["kl"] != 0 for row in asked)
    assert content["best_of_n"] == []
    outcome = rlhf("evaluate", "name=other", *arguments, "+prefixes={aksed: x}")
    assert outcome.status == 1
    assert (
        "Evaluate.prefixes must have labels of policies (same, asked), got aksed"
        in outcome.err.splitlines()[-1]
    )


# The reward by itself


def test_pairs_alone_evaluate_a_reward(rlhf: Any, workspace: Any, tmp_path: Path) -> None:
    pairs = [json.loads(line) for line in workspace.pairs.read_text().splitlines()]
    for number, row in enumerate(pairs):
        row |= {"subset": ["film", "story"][number % 2], "section": "reviews"}
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    outcome = rlhf("evaluate", "name=alone", f"reward.path={workspace.reward}", "pairs.path=pairs.jsonl")
    assert outcome.status == 0, outcome.err
    assert "| section  | reviews | 12 " in outcome.out
    folder = tmp_path / "runs" / "alone"
    assert {file.name for file in folder.iterdir()} == {
        "config.yaml",
        "report.json",
        "report.md",
        "reward.png",
    }
    content = json.loads((folder / "report.json").read_text())
    assert content["policies"] == []
    assert {one["name"]: one["rows"] for one in content["reward"]["breakdown"]["categories"]} == {
        "film": 6,
        "story": 6,
    }
    assert len(content["reward"]["chosen"]["reward"]) == 12


def test_a_function_is_evaluated_on_the_columns_of_pairs_and_candidates(
    rlhf: Any, workspace: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It scores a response by whether its row names it."""
    (tmp_path / "named.py").write_text(
        "def named(prompts, responses, columns):\n"
        "    return [float(row['good'] in text) for text, row in zip(responses, columns)]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    pair = {"prompt": "the film", "chosen": " is good", "rejected": " is bad", "good": "good"}
    several = {
        "prompt": "the sea",
        "chosen": [" is fine"],
        "rejected": [" is bad", " is dull"],
        "good": "fine",
    }
    (tmp_path / "pairs.jsonl").write_text((json.dumps(pair) + "\n") * 2)
    (tmp_path / "several.jsonl").write_text(
        json.dumps(several) + "\n" + json.dumps(several | {"good": "dull"})
    )
    outcome = rlhf(
        *("evaluate", "name=function", "reward=function", "reward.function=named:named"),
        *(f"tokenizer={workspace.sft / 'model'}", "pairs.path=pairs.jsonl", "candidates.path=several.jsonl"),
        *("resamples=50", "seed=3"),
    )
    assert outcome.status == 0, outcome.err
    content = json.loads((tmp_path / "runs" / "function" / "report.json").read_text())
    assert content["pairs"][0]["accuracy"] == 1.0
    assert content["candidates"]["breakdown"]["mean"]["accuracy"]["value"] == 0.5
    assert content["candidates"]["shared_credit"] == {"all": 0.5}


def test_a_policy_and_its_reference_are_a_reward(rlhf: Any, workspace: Any, tmp_path: Path) -> None:
    """The same model twice: every score is 0, in `rlhf evaluate` and in `rlhf score`."""
    source = ("reward=implicit", f"reward.policy={workspace.sft}", f"reward.reference={workspace.sft}")
    outcome = rlhf("evaluate", "name=implicit", *source, f"pairs.path={workspace.pairs}")
    assert outcome.status == 0, outcome.err
    content = json.loads((tmp_path / "runs" / "implicit" / "report.json").read_text())
    assert (content["pairs"][0]["accuracy"], content["pairs"][0]["tied"]) == (0.0, 1.0)
    outcome = rlhf("score", "name=scores", *source, f"data.path={workspace.demonstrations}")
    assert "12 scores, mean 0.0000" in outcome.out, outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to evaluate: give prompts.path=… for policies, pairs.path=… or candidates.path=… for"),
        (["pairs.path=x", "best_of=[2]"], "policies and best_of need prompts to answer: give prompts.path=…"),
        (["prompts.path=x"], "prompts are answered by the reference first: give reference.path=…"),
        (["pairs.path=x", "resamples=0"], "Evaluate.resamples must be positive, got 0"),
        (
            ["pairs.path=x", "reward=function", "reward.function=a:b"],
            "tokenizer must name one: there is no reference, and the reward is no model with its own",
        ),
    ],
)
def test_an_evaluation_without_what_it_needs_is_one_line(
    rlhf: Any, tmp_path: Path, arguments: list[str], message: str
) -> None:
    path = [] if "reward=function" in arguments else ["reward.path=x"]
    outcome = rlhf("evaluate", "name=refused", *path, *arguments)
    assert outcome.status == 1
    assert outcome.err.splitlines()[-1].startswith(f"rlhf evaluate: {message}")
    assert not (tmp_path / "runs" / "refused" / "report.md").exists()
