"""Small programming tasks: what their tests ask, and a teacher who is right in two cases of three."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.programs import RIGHT, explain, main, mistaken, revise, tasks

ROWS = {row["prompt"]: row for row in tasks()}


def passes(row: dict[str, Any], response: str) -> bool:
    """Without a sandbox: the programs are our own."""
    names: dict[str, Any] = {}
    try:
        exec(row["prompt"] + response, names)
        for test in row["tests"]:
            exec(test, names)
    except Exception:
        return False
    return True


@pytest.mark.parametrize(
    ("task", "given", "expected"),
    [
        ("3 more than x", 10, 13),
        ("3 less than x", 10, 7),
        ("3 times x", 10, 30),
        ("x taken from 3", 10, -7),
        ("3 more than 4 times x", 10, 43),
        ("3 less than 4 times x", 10, 37),
        ("4 times the sum of x and 3", 10, 52),
        ("4 times what is 3 less than x", 10, 28),
        ("the first 2 letters of x", "abcdefghijklmn", "ab"),
        ("x without its first 2 letters", "abcdefghijklmn", "cdefghijklmn"),
        ("the last 2 letters of x", "abcdefghijklmn", "mn"),
        ("x without its last 2 letters", "abcdefghijklmn", "abcdefghijkl"),
        ("x, then the letter q", "abcdefghijklmn", "abcdefghijklmnq"),
        ("the letter q, then x", "abcdefghijklmn", "qabcdefghijklmn"),
        ("x 2 times, then the letter q", "abcdefghijklmn", "abcdefghijklmnabcdefghijklmnq"),
        ("2 times the letter q, then x", "abcdefghijklmn", "qqabcdefghijklmn"),
    ],
)
def test_a_task_asks_what_its_words_say(task: str, given: Any, expected: Any) -> None:
    assert f"assert f({given!r}) == {expected!r}" in ROWS[f"# {task}\nf = lambda x:"]["tests"]


def test_every_right_answer_passes_and_every_mistake_fails() -> None:
    for row in ROWS.values():
        assert passes(row, row["response"])
        assert not passes(row, mistaken(row["response"])), row


def test_there_are_as_many_tasks_as_the_words_allow() -> None:
    """Of 9 digits a, 8 digits b and 26 letters, in the order of the forms."""
    assert len(ROWS) == 36 + 288 + 36 + 52 + 468


def test_no_task_stands_in_two_files_and_the_same_options_give_the_same(tmp_path: Path) -> None:
    def made(folder: str, *options: str) -> dict[str, list[dict[str, Any]]]:
        main([str(tmp_path / folder), "--test", "20", "--supervised", "200", "--prompts", "30", *options])
        files = {file.stem: file.read_text() for file in (tmp_path / folder).iterdir()}
        return {name: [json.loads(line) for line in text.splitlines()] for name, text in files.items()}

    first = made("first", "--wrong", "0.5")
    assert {name: len(rows) for name, rows in first.items()} == {"test": 20, "supervised": 200, "prompts": 30}
    assert len({row["prompt"] for rows in first.values() for row in rows}) == 250
    assert made("again", "--wrong", "0.5") == first
    assert made("other", "--wrong", "0.5", "--seed", "1") != first
    wrong = sum(row["response"] != row["answer"] for row in first["supervised"])
    assert 70 <= wrong <= 130  # 100 expected of 200, four deviations of 7
    assert all(passes(row, row["answer"]) for row in first["supervised"])
    assert all(row["response"] == row["answer"] for row in first["test"] + first["prompts"])
    for name, rows in made("right").items():
        assert [row["prompt"] for row in rows] == [row["prompt"] for row in first[name]]
        assert all(row["response"] == row["answer"] for row in rows)


@pytest.mark.parametrize("options", [["--test", "0"], ["--test", "900"], ["--wrong", "1.5"]])
def test_impossible_options_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path / "new"), *options])
    assert options[0] in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_teacher_says_what_is_asked_for_and_revises_rightly_in_two_cases_of_three() -> None:
    rows = list(ROWS.values())
    prompts, drafts = [row["prompt"] for row in rows], [mistaken(row["answer"]) for row in rows]
    feedback = explain(prompts, drafts, rows)
    assert feedback[0] == "f returns x - 1, but the task asks for x + 1"
    told = [row | {"feedback": said} for row, said in zip(rows, feedback, strict=True)]
    blind: Callable[[dict[str, Any]], dict[str, Any]] = lambda row: {"feedback": row["feedback"]}  # noqa: E731
    revised = revise(prompts, drafts, [blind(row) for row in told])
    right = sum(passes(row, new) for row, new in zip(rows, revised, strict=True))
    deviation = (RIGHT * (1 - RIGHT) / len(rows)) ** 0.5
    assert abs(right / len(rows) - RIGHT) < 4 * deviation
    assert revised == revise(prompts, drafts, told)
