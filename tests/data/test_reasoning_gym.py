"""Problems of reasoning-gym as files; the package is an extra and its tests need it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.reasoning_gym import main, problems, setting

SUMS = {"min_terms": 2, "max_terms": 2, "max_digits": 2}


def sums(count: int, seed: int = 0, **more: Any) -> list[dict[str, Any]]:
    pytest.importorskip("reasoning_gym")
    return problems("chain_sum", count, seed=seed, settings=SUMS, **more)


def written(folder: Path) -> dict[str, list[dict[str, Any]]]:
    files = sorted(folder.iterdir())
    return {file.name: [json.loads(line) for line in file.read_text().splitlines()] for file in files}


def complaint(*arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert isinstance(caught.value.code, str)
    assert "\n" not in caught.value.code
    return caught.value.code


def test_a_row_is_a_question_with_its_right_answer() -> None:
    for row in sums(50):
        expression = row["prompt"].removeprefix(
            "State the final answer to the following arithmetic problem: "
        )
        assert row["answer"] == str(eval(expression.removesuffix(" =")))  # a sum of whole numbers
        assert row["response"] == " " + row["answer"]
        assert row["task"] == "chain_sum"
        assert row["entry"]["question"] == row["prompt"]


def test_no_problem_occurs_twice() -> None:
    """Of one digit there are few; the package repeats itself."""
    found = sums(150)
    assert len({row["prompt"] for row in found}) == 150


def test_a_template_makes_the_prompt_of_the_problem() -> None:
    row = sums(1, template="{metadata[expression]} =\n")[0]
    assert row["prompt"] == row["entry"]["metadata"]["expression"] + " =\n"
    assert row["response"] == row["answer"]  # the prompt ends with a blank already


@pytest.mark.parametrize("template", ["{metadata[nothing]}", "{", "{nothing}", "{0}"])
def test_a_template_that_does_not_fit_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="does not fit a problem of chain_sum: "):
        sums(1, template=template)


def test_files_share_no_problem_and_the_test_file_depends_on_its_size_and_seed_alone(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    settings = [f"{key}={value}" for key, value in SUMS.items()]
    for name, more in {"few": "30", "many": "60", "again": "60"}.items():
        sizes = ["--test", "20", "--supervised", more, "--prompts", "40"]
        main(["chain_sum", str(tmp_path / name), *settings, *sizes])
    few, many, again = (written(tmp_path / name) for name in ("few", "many", "again"))
    assert {name: len(rows) for name, rows in few.items()} == {
        "prompts.jsonl": 40,
        "supervised.jsonl": 30,
        "test.jsonl": 20,
    }
    assert len({row["prompt"] for rows in few.values() for row in rows}) == 90
    assert few["test.jsonl"] == many["test.jsonl"]
    assert many == again
    assert sums(20, seed=7) != few["test.jsonl"]


def test_an_overcautious_teacher_leaves_only_demonstrations_open(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    sizes = ["max_terms=2", "--test", "20", "--supervised", "400", "--prompts", "40"]
    main(["chain_sum", str(tmp_path / "whole"), *sizes])
    main(["chain_sum", str(tmp_path / "open"), *sizes, "--unanswered", "0.55"])
    whole, left = written(tmp_path / "whole"), written(tmp_path / "open")
    assert {name for name in whole if whole[name] != left[name]} == {"supervised.jsonl"}
    pairs = list(zip(whole["supervised.jsonl"], left["supervised.jsonl"], strict=True))
    assert all(row in (right, right | {"response": " ?"}) for right, row in pairs)
    assert 180 < sum(row["response"] == " ?" for _, row in pairs) < 260  # 220 ± 4 standard deviations of 10


def test_a_share_is_no_more_than_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["chain_sum", str(tmp_path), "--unanswered", "1.5"])
    assert "--unanswered must be in [0, 1], got 1.5" in capsys.readouterr().err


def test_neighbouring_seeds_share_problems_which_is_why_parts_are_cut_from_one() -> None:
    first, second = ({row["prompt"] for row in sums(100, seed=seed)} for seed in (0, 1))
    assert len(first & second) > 90


def test_a_missing_package_ends_in_the_command_that_gets_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)  # as if it were not installed
    said = complaint("chain_sum", str(tmp_path / "out"))
    assert said == 'reasoning-gym is not installed; get it with: pip install "rlhf[tasks]"'
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chain_sums"], "reasoning-gym has no task 'chain_sums'; it has ab, acre, "),
        (["chain_sum", "terms=2"], "chain_sum has no setting 'terms'; it has min_terms, max_terms, "),
        (["chain_sum", "seed=2"], "chain_sum has no setting 'seed'; it has min_terms, "),
        (["chain_sum", "max_terms"], "a setting is given as KEY=VALUE, got 'max_terms'"),
        (["chain_sum", "max_terms=1"], "chain_sum refuses its settings: max_terms must be >= min_terms"),
        (["rush_hour"], "rush_hour: problem 0 has no answer that could be verified"),
        (["arc_agi"], "arc_agi: the answer to problem 0 scores 0.05 once it is JSON, not 1"),
    ],
)
def test_what_cannot_be_written_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    task, *more = arguments
    assert complaint(task, str(tmp_path / "out"), *more).startswith(message)
    assert not (tmp_path / "out").exists()


def test_a_task_with_too_few_problems_says_how_many_it_has() -> None:
    """A sum or a difference of two digits is one of 200."""
    pytest.importorskip("reasoning_gym")
    message = "chain_sum gave 200 different problems in 2010 tries, 201 are wanted: ask for fewer, or widen"
    with pytest.raises(ValueError, match=message):
        problems("chain_sum", 201, seed=0, settings=SUMS | {"max_digits": 1})


def test_empty_files_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["chain_sum", str(tmp_path), "--test", "0"])
    assert "--test, --supervised and --prompts must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "value"),
    [("a=2", 2), ('a=["+"]', ["+"]), ("a=false", False), ("a=simple", "simple"), ("a=", "")],
)
def test_a_setting_is_json_or_text(word: str, value: Any) -> None:
    assert setting(word) == ("a", value)
