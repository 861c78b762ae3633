from collections.abc import Callable
from typing import Any

import pytest

from rlhf.data.scored import Account, scored_rows

Write = Callable[..., str]
ROW = {"prompt": "the", "response": " sea", "score": 0.5}


def read(*paths: str, score_field: str = "score", keep_cut: bool = False) -> Any:
    return scored_rows(paths, score_field=score_field, keep_cut=keep_cut)


def test_all_files_are_one_pool_in_their_order(write_jsonl: Write) -> None:
    first = write_jsonl(ROW | {"score": 1})
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    second = write_jsonl(ROW, {"messages": turns, "score": -2.5}, name="second.jsonl")
    rows, account = read(first, second)
    assert [(row.prompt, row.response, row.score) for row in rows] == [
        ("the", " sea", 1.0),
        ("the", " sea", 0.5),
        (turns[:1], "yes", -2.5),
    ]
    assert account == Account(read=3)


def test_another_field_is_the_score(write_jsonl: Write) -> None:
    rows, _ = read(write_jsonl(ROW | {"gold": 3.0}), score_field="gold")
    assert rows[0].score == 3.0


@pytest.mark.parametrize(("keep_cut", "kept"), [(False, 2), (True, 3)])
def test_empty_and_cut_responses_are_left_out_and_counted(
    write_jsonl: Write, keep_cut: bool, kept: int
) -> None:
    path = write_jsonl(
        ROW, ROW | {"ended": True}, ROW | {"ended": False}, ROW | {"response": "", "ended": True}
    )
    rows, account = read(path, keep_cut=keep_cut)
    assert len(rows) == kept
    assert account.left_out == {"empty": 1} | ({} if keep_cut else {"cut off": 1})
    assert str(account).startswith("4 rows read, 0 written, ")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"score": "high"}, "field 'score' is 'high', expected a finite number"),
        ({"score": True}, "field 'score' is True, expected a finite number"),
        ({"score": None}, "field 'score' is None, expected a finite number"),
        ({"score": float("nan")}, "field 'score' is nan, expected a finite number"),
        ({"ended": "no"}, "field 'ended' is 'no', expected true or false"),
        ({"prompt": 4}, "field 'prompt' is a number, expected a string or a list of messages"),
        ({"response": 4}, "field 'response' is"),
    ],
)
def test_malformed_rows_are_refused_by_name(
    write_jsonl: Write, change: dict[str, Any], complaint: str
) -> None:
    path = write_jsonl(ROW, ROW | change)
    with pytest.raises(ValueError) as refusal:
        read(path)
    assert str(refusal.value).startswith(f"{path}:2: {complaint}")
    assert "\n" not in str(refusal.value)


def test_a_row_without_a_score_says_what_it_has(write_jsonl: Write) -> None:
    path = write_jsonl({"prompt": "the", "response": " sea"})
    with pytest.raises(ValueError) as refusal:
        read(path)
    assert str(refusal.value) == (
        f"{path}:1: no score 'score', the row has 'prompt', 'response'; rlhf score gives it one"
    )


def test_an_account_names_what_there_is_some_of() -> None:
    account = Account(read=5)
    account.written.update({"'<good> '": 2, "'<bad> '": 0})
    account.left_out.update({"empty": 1, "cut off": 2})
    assert str(account) == "5 rows read, 2 (2 '<good> ') written, 3 (1 empty, 2 cut off) left out"
    account.written.clear()
    account.written[""] += 2
    assert str(account) == "5 rows read, 2 written, 3 (1 empty, 2 cut off) left out"
