"""``rlhf select`` turns what generate and score wrote into rows that the training commands read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROWS = [
    {"prompt": "the film", "response": " is good", "score": 2.0, "ended": True},
    {"prompt": "the film", "response": " is bad", "score": -1.0, "ended": True},
    {"prompt": "a dull", "response": " story", "score": 0.5, "ended": True},
    {"prompt": "a dull", "response": " story , and", "score": 3.0, "ended": False},
    {"prompt": "a dull", "response": "", "score": 1.0, "ended": True},
]


def written(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    return written(tmp_path / "scores.jsonl", ROWS)


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs" / name / "selected.jsonl").open(encoding="utf-8")]


def test_the_report_accounts_for_every_row(rlhf: Any, tmp_path: Path, scores: Path) -> None:
    outcome = rlhf("select", "name=best", f"input=[{scores}]")
    assert outcome.status == 0, outcome.err
    assert [line["response"] for line in lines(tmp_path, "best")] == [" is good", " story"]
    assert outcome.out == (
        "5 rows read, 2 written, 3 (1 cut off, 1 empty, 1 not the best of their prompt) left out: "
        f"{tmp_path / 'runs' / 'best' / 'selected.jsonl'}\n"
    )


def test_the_pool_is_all_files_with_another_score_and_the_cut_ones(
    rlhf: Any, tmp_path: Path, scores: Path
) -> None:
    more = written(tmp_path / "more.jsonl", [{"prompt": "the film", "response": " is fine", "score": 9.0}])
    outcome = rlhf("select", "name=best", f"input=[{scores},{more}]", "keep_cut=true")
    assert outcome.status == 0, outcome.err
    assert [line["response"] for line in lines(tmp_path, "best")] == [" is fine", " story , and"]


def test_equal_inputs_give_equal_files(rlhf: Any, tmp_path: Path, scores: Path) -> None:
    for name in ("one", "other"):
        assert rlhf("select", f"name={name}", f"input=[{scores}]", "selection=label").status == 0
    one, other = ((tmp_path / "runs" / name / "selected.jsonl").read_bytes() for name in ("one", "other"))
    assert one == other


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "input must name files of scored responses, as input=[runs/NAME/scores.jsonl], got []"),
        (["input=[nothing.jsonl]"], "nothing.jsonl: no such file or folder"),
        (["selection=pairs", "selection.margin=9"], "no row is left: 5 rows read, 0 written, 5 ("),
        (["score_field=gold"], ":1: no score 'gold', the row has 'prompt', 'response', 'score', 'ended'; "),
        (["selection=label", "selection.threshold=9"], "all 3 scores are below 9: selection.threshold must"),
        (["selection=top", "selection.fraction=2"], "Top.fraction must be above 0 and at most 1, got 2.0"),
        (["selection=tops"], "selection has no option 'tops'; did you mean top?"),
        (["selection.threshold=1"], "unknown key selection.threshold: it goes with selection=above"),
    ],
)
def test_what_cannot_be_selected_is_refused_in_one_line(
    rlhf: Any, tmp_path: Path, scores: Path, arguments: list[str], complaint: str
) -> None:
    given = [] if not arguments or arguments[0].startswith("input") else [f"input=[{scores}]"]
    outcome = rlhf("select", "name=new", *given, *arguments)
    assert outcome.status == 1
    assert outcome.err.startswith("rlhf select: ")
    assert outcome.err.count("\n") == 1
    assert complaint in outcome.err
    assert not list((tmp_path / "runs").rglob("selected.*"))


def test_a_malformed_row_is_named(rlhf: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROWS[0]) + '\n{"prompt": "the\n')
    outcome = rlhf("select", "name=new", f"input=[{file}]")
    assert outcome.status == 1
    assert outcome.err.startswith(f"rlhf select: {file}:2: broken JSON at column ")


def test_a_selection_is_never_overwritten(rlhf: Any, tmp_path: Path, scores: Path) -> None:
    assert rlhf("select", "name=one", f"input=[{scores}]").status == 0
    outcome = rlhf("select", "name=one", f"input=[{scores}]", "selection=top")
    assert outcome.status == 1
    assert (
        "runs/one already holds selected.jsonl: choose another name=…; nothing was overwritten" in outcome.err
    )
    assert len(lines(tmp_path, "one")) == 2


def test_what_was_sampled_and_scored_is_learnt(rlhf: Any, tmp_path: Path, workspace: Any) -> None:
    """One round of expert iteration, and of conditioning, from the commands' own files."""
    shared = (f"model.path={workspace.sft}", f"prompts.path={workspace.prompts}", "decoding.max_new_tokens=4")
    reward = ("reward=model", f"reward.path={workspace.reward}")
    steps = [
        ("generate", "name=sampled", *shared, *reward, "samples=3"),
        ("select", "name=best", "input=[runs/sampled/responses.jsonl]", "keep_cut=true"),
        ("sft", "name=expert", *learnt(workspace, "best")),
        ("select", "name=both", "input=[runs/sampled/responses.jsonl]", "keep_cut=true", "selection=label"),
        ("sft", "name=conditioned", *learnt(workspace, "both")),
        ("generate", "name=good", *shared, *reward, "model.path=runs/conditioned", "prefix='<good> '"),
    ]
    for name, *arguments in steps:
        outcome = rlhf(name, *arguments)
        assert outcome.status == 0, outcome.err
    sampled = [json.loads(line) for line in (tmp_path / "runs/sampled/responses.jsonl").open()]
    for line in lines(tmp_path, "best"):
        scores = [row["score"] for row in sampled if row["prompt"] == line["prompt"] and row["response"]]
        assert line["score"] == max(scores)
    good = [json.loads(line) for line in (tmp_path / "runs/good/responses.jsonl").open()]
    assert [row["prompt"] for row in good[:3]] == ["the film", "a dull", "the sea"]


def learnt(workspace: Any, name: str) -> list[str]:
    model = ("model=pretrained", f"model.path={workspace.sft}", "batch_size=3", "data.max_length=32")
    return [*model, "engine=plain", "micro_batch_size=8", f"data.path=runs/{name}/selected.jsonl"]
