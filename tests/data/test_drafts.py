"""Failed responses and their tasks are read row by row; what is malformed is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.drafts import failed_drafts


def file_of(folder: Path, name: str, *rows: dict[str, Any]) -> str:
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def response(text: str, score: Any, **others: Any) -> dict[str, Any]:
    return {"prompt": "p", "response": text, "score": score, **others}


def test_what_scores_below_the_threshold_has_failed_and_counts_as_often_as_it_was_sampled(
    tmp_path: Path,
) -> None:
    first = file_of(tmp_path, "first", response("a", 0.0), response("b", 1.0), response("a", 0.0))
    second = file_of(tmp_path, "second", response("", 0.5))
    drafts, read = failed_drafts([first, second], threshold=1.0)
    assert read == 4
    assert [draft.response for draft in drafts] == ["a", "a", ""]
    assert [draft.where.rpartition("/")[2] for draft in drafts] == [
        "first.jsonl:1",
        "first.jsonl:3",
        "second.jsonl:1",
    ]
    assert len(failed_drafts([first, second], threshold=0.5)[0]) == 2


def test_columns_come_from_the_row_and_from_its_task(tmp_path: Path) -> None:
    rows = file_of(tmp_path, "rows", response("a", 0, ended=True, best_of=4, kind="row"))
    tasks = file_of(
        tmp_path,
        "tasks",
        {"prompt": "other", "tests": "0"},
        {"prompt": "p", "response": "right", "tests": "1", "kind": "task"},
    )
    (draft,), _ = failed_drafts([rows], threshold=1.0, tasks=tasks)
    assert draft.columns == {"tests": "1", "kind": "row"}
    (draft,), _ = failed_drafts([rows], threshold=1.0)
    assert draft.columns == {"kind": "row"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "response": "a"}, "field 'score' is None, expected a finite number; rlhf score"),
        (response("a", "0"), "field 'score' is '0', expected a finite number"),
        (response("a", True), "field 'score' is True, expected a finite number"),
        (response("a", float("nan")), "field 'score' is nan, expected a finite number"),
        ({"prompt": "p", "score": 0}, "field 'response' is None, expected text"),
        ({"prompt": [{"role": "user"}], "response": "a", "score": 0}, "field 'prompt' is [{'role'"),
        ({"prompt": "q", "response": "a", "score": 0}, "its prompt is none of those in "),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    rows = file_of(tmp_path, "rows", response("b", 1.0), row)
    tasks = file_of(tmp_path, "tasks", {"prompt": "p"})
    with pytest.raises(ValueError) as refusal:
        failed_drafts([rows], threshold=1.0, tasks=tasks)
    assert f"rows.jsonl:2: {message}" in str(refusal.value)
