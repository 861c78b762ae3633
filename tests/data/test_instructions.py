"""Prompts with IFEval's constraints; the package is an extra and most tests need it."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf.data import instructions
from rlhf.data.instructions import checker, constrained, constraint, main, registry
from rlhf.data.rows import PromptRow

installed = pytest.mark.skipif(
    importlib.util.find_spec("if_verifiable") is None, reason="if-verifiable is not installed"
)
FEWER = 'length_constraints:number_words={"num_words": 4, "relation": "less than"}'


def prompts(file: Path, count: int = 30) -> Path:
    rows = [{"prompt": f"Tell me of day {number}.", "day": number} for number in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def written(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        file.name: [json.loads(line) for line in file.read_text().splitlines()] for file in folder.iterdir()
    }


def complaint(*arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert isinstance(caught.value.code, str)
    assert "\n" not in caught.value.code
    return caught.value.code


@installed
def test_every_prompt_gets_one_constraint_in_words_and_in_a_column(tmp_path: Path) -> None:
    file = prompts(tmp_path / "prompts.jsonl")
    main([str(file), str(tmp_path / "out"), "punctuation:no_comma", FEWER, "--test", "10"])
    files = written(tmp_path / "out")
    assert {name: len(rows) for name, rows in files.items()} == {"prompts.jsonl": 20, "test.jsonl": 10}
    rows = [row for part in files.values() for row in part]
    assert sorted(row["day"] for row in rows) == list(range(30))  # each prompt is in one file, once
    found = {row["instructions"][0]["id"] for row in rows}
    assert found == {"punctuation:no_comma", "length_constraints:number_words"}
    for row in rows:
        (only,) = row["instructions"]
        assert row["prompt"].startswith(f"Tell me of day {row['day']}. ")
        if only["id"] == "punctuation:no_comma":
            assert "refrain from the use of any commas" in row["prompt"]
            assert only["arguments"] == {}
        else:
            assert "less than 4 words" in row["prompt"]
            assert only["arguments"] == {"num_words": 4, "relation": "less than"}


@installed
def test_what_is_always_asked_comes_before_the_one_constraint(tmp_path: Path) -> None:
    file = prompts(tmp_path / "prompts.jsonl")
    longer = 'length_constraints:number_words={"num_words": 3, "relation": "at least"}'
    ones = ["punctuation:no_comma", FEWER]
    main([str(file), str(tmp_path / "out"), *ones, "--always", longer, "--test", "10"])
    rows = [row for part in written(tmp_path / "out").values() for row in part]
    assert len(rows) == 30
    for row in rows:
        first, second = row["instructions"]
        assert first["arguments"] == {"num_words": 3, "relation": "at least"}
        assert second["id"] == "punctuation:no_comma" or second["arguments"]["num_words"] == 4
        own = "less than 4 words" if second["arguments"] else "refrain from the use of any commas"
        assert 0 < row["prompt"].index("at least 3 words") < row["prompt"].index(own)
    assert {row["instructions"][1]["id"] for row in rows} == {
        "punctuation:no_comma",
        "length_constraints:number_words",
    }


@installed
def test_the_same_options_give_the_same_files_and_another_seed_gives_others(tmp_path: Path) -> None:
    file = prompts(tmp_path / "prompts.jsonl")
    for name, seed in {"a": "0", "b": "0", "c": "1"}.items():
        main(
            [
                str(file),
                str(tmp_path / name),
                "length_constraints:number_words",
                "--test",
                "10",
                "--seed",
                seed,
            ]
        )
    a, b, c = (written(tmp_path / name) for name in "abc")
    assert a == b
    assert a["test.jsonl"] != c["test.jsonl"]


@installed
def test_open_arguments_are_drawn_for_each_prompt_and_written_down() -> None:
    before = random.getstate()
    rows = [
        constrained(
            PromptRow(prompt=f"Day {number}.", columns={}, where="x"),
            [("length_constraints:number_words", {"relation": "at least"})],
            seed=0,
        )
        for number in range(20)
    ]
    assert random.getstate() == before
    numbers = {row["instructions"][0]["arguments"]["num_words"] for row in rows}
    assert len(numbers) > 5
    for row in rows:
        drawn = row["instructions"][0]["arguments"]
        assert drawn["relation"] == "at least"
        assert f"at least {drawn['num_words']} words" in row["prompt"]


@installed
def test_a_conversation_is_constrained_in_its_last_turn() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]
    last = {"role": "user", "content": "A fruit?"}
    row = PromptRow(prompt=[*turns, last], columns={}, where="x")
    made = constrained(row, [("punctuation:no_comma", {})], seed=0)["prompt"]
    assert made[:2] == turns
    assert made[2]["content"].startswith("A fruit? In your entire response")
    assert last["content"] == "A fruit?"


@installed
@pytest.mark.parametrize(
    ("word", "good", "bad"),
    [
        ("punctuation:no_comma", "one two", "one, two"),
        (FEWER, "one two three", "one two three four"),
        ('keywords:existence={"keywords": ["sea"]}', "The sea.", "The lake."),
        ('keywords:forbidden_words={"forbidden_words": ["sea"]}', "The lake.", "The sea."),
        ("startend:quotation", '"so"', "so"),
        ('startend:end_checker={"end_phrase": "the end"}', "It is the end", "The end it is"),
        ("detectable_format:title", "<<Sea>> blue", "Sea: blue"),
        ("detectable_format:json_format", '{"a": 1}', "a: 1"),
        ('detectable_format:number_bullet_lists={"num_bullets": 2}', "* a\n* b", "* a"),
        (
            'keywords:letter_frequency={"letter": "s", "let_frequency": 2, "let_relation": "at least"}',
            "ss",
            "s",
        ),
        ("change_case:english_lowercase", "the sea is blue and very large", "The Sea is blue and very large"),
    ],
)
def test_a_checker_tells_what_follows_from_what_does_not(word: str, good: str, bad: str) -> None:
    follows = checker(*constraint(word))
    assert follows(good)
    assert not follows(bad)


@installed
def test_only_the_checkers_of_the_package_are_imported() -> None:
    """The package as a whole downloads data while it is imported."""
    registry()
    assert "if_verifiable" not in sys.modules
    assert not [name for name in sys.modules if name.startswith("if_verifiable.ifbench")]


@installed
def test_missing_data_of_nltk_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def needs_data(text: str) -> bool:
        raise LookupError("a page of advice\nin many lines")

    built = type("Checker", (), {"check_following": staticmethod(needs_data)})()
    monkeypatch.setattr(instructions, "_built", lambda name, arguments: (built, ""))
    with pytest.raises(ValueError, match=r"^a:b needs NLTK's data: python -m nltk.downloader punkt_tab$"):
        checker("a:b", {})("text")


@installed
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["punctuation:no_commas"], "there is no constraint 'punctuation:no_commas'; there are change_case:"),
        (["punctuation:no_comma", "--always", "a:b"], "there is no constraint 'a:b'; there are change_case:"),
        (["punctuation:no_comma={"], "punctuation:no_comma: its arguments are broken JSON: "),
        (["punctuation:no_comma=[1]"], "punctuation:no_comma: its arguments must be a JSON object, got [1]"),
        (['punctuation:no_comma={"a": 1}'], 'punctuation:no_comma does not take the arguments {"a": 1}: '),
        (
            ["punctuation:no_comma", "--test", "30"],
            "30 different prompts cannot be shared out with 30 of them",
        ),
    ],
)
def test_what_cannot_be_written_is_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    file = prompts(tmp_path / "prompts.jsonl")
    assert complaint(str(file), str(tmp_path / "out"), "--test", "10", *words).startswith(message)
    assert not (tmp_path / "out").exists()


def test_a_missing_package_ends_in_the_command_that_gets_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(instructions, "find_spec", lambda name: None)
    registry.cache_clear()
    said = complaint(str(prompts(tmp_path / "p.jsonl")), str(tmp_path / "out"), "punctuation:no_comma")
    registry.cache_clear()
    assert said == 'if-verifiable is not installed; get it with: pip install "rlhf[tasks]"'
