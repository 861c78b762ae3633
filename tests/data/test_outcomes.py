"""Comparisons in the shapes people have, and what is refused with file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.outcomes import OutcomeData


def labels(tmp_path: Path, *rows: dict[str, Any], **fields: Any) -> list[float]:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [one.label for one in OutcomeData(path=str(file), **fields).load()]


def test_outcomes_are_read_as_people_write_them(tmp_path: Path) -> None:
    arena = {"model_a": "gpt", "model_b": "claude"}
    words = ["model_a", "model_b", "tie", "tie (bothbad)", "both_bad", "a", "B", "gpt", "claude"]
    found = labels(tmp_path, *(arena | {"winner": word} for word in words))
    assert found == [1, 0, 0.5, 0.5, 0.5, 1, 0, 1, 0]
    numbers = [1, 0.5, 0, 0.75, "1", "0.5"]
    assert labels(tmp_path, *({"a": "x", "b": "y", "outcome": n} for n in numbers)) == [
        1,
        0.5,
        0,
        0.75,
        1,
        0.5,
    ]
    named = {"left": "x", "right": "y", "said": "right"}
    assert labels(tmp_path, named, a_field="left", b_field="right", outcome_field="said") == [0]


def test_csv_counts_annotators_and_items(tmp_path: Path) -> None:
    file = tmp_path / "battles.csv"
    file.write_text('question_id,model_a,model_b,winner,judge,count\n7,"a, b",c,tie,ann,3\n')
    (one,) = OutcomeData(path=str(file), item_fields=["question_id"]).load()
    assert (one.a, one.b, one.label, one.count, one.annotator, one.item) == ("a, b", "c", 0.5, 3, "ann", "7")
    assert one.where == f"{file}:2"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": "x", "b": "x", "outcome": 1}, "'a' and 'b' are both 'x'"),
        ({"a": "x", "b": "y"}, "no field outcome, winner, preferred, label with an outcome; the row has"),
        ({"model_a": "x", "winner": "tie"}, "field 'model_b' is not there"),
        ({"chosen": "x", "rejected": "y"}, "no field a, model_a, response_a with the arm"),
        ({"a": "x", "b": "y", "winner": "z"}, "field 'winner' is 'z', which is none of a, b, x, y, tie"),
        ({"a": "b", "b": "a", "winner": "a"}, "field 'winner' is 'a', which could mean several of"),
        ({"a": "1", "b": "2", "winner": "2"}, "field 'winner' is '2', expected 1, 0.5, 0"),
        ({"a": "0", "b": "2", "winner": "0"}, "'0', which could mean several of"),
        ({"a": "x", "b": "y", "winner": None}, "field 'winner' is null"),
        ({"a": "x", "b": "y", "winner": True}, "field 'winner' is True, which is none of"),
        ({"a": "x", "b": "y", "winner": 1.5}, "field 'winner' is 1.5, expected 1, 0.5, 0"),
        ({"a": "x", "b": "y", "winner": float("nan")}, "field 'winner' is nan, expected"),
        ({"a": 3, "b": "y", "winner": 1}, "field 'a' is 3, expected the name of an arm"),
        ({"a": "x", "b": "y", "winner": 1, "count": -2}, "field 'count' is -2, expected a positive number"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    good = {"a": "x", "b": "y", "winner": 1}
    with pytest.raises(ValueError) as refusal:
        labels(tmp_path, good, row)
    assert str(refusal.value).startswith(f"{tmp_path / 'rows.jsonl'}:2: ")
    assert message in str(refusal.value)


def test_one_side_alone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a_field and b_field must be given together.*a_field=x"):
        OutcomeData(path="rows", a_field="x")
