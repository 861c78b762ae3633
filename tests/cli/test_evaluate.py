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
