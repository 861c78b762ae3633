import csv
import json
from pathlib import Path

import pytest

from rlhf.data.movie_reviews import beginning, labelled_texts, part_of
from rlhf.data.review_openings import preferences, write_files


def review(number: int) -> str:
    return " ".join(f"{word}{number}" for word in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


LABELS = {review(number): number % 2 == 0 for number in range(200)}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    file = tmp_path / "table.csv"
    rows = [("One <br /> two", 1, "imdb"), ("twice", 0, "imdb"), ("twice", 1, "imdb"), ("x", 1, "other")]
    with file.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([("text", "label", "source"), *rows])
    return file


def test_labels_are_of_one_source_cleaned_and_without_contradictions(table: Path) -> None:
    assert labelled_texts(table, "imdb") == {"One two": True}


def test_a_beginning_has_as_many_words_as_the_hash_says() -> None:
    lengths = {len(beginning(text, 4, 8).split()) for text in LABELS}
    assert lengths == {4, 5, 6, 7, 8}
    assert all(text.startswith(beginning(text, 4, 8)) for text in LABELS)


def test_the_positive_side_is_chosen_and_length_says_nothing() -> None:
    found = preferences(LABELS, words=30, seed=0)
    assert len(found) == 100
    for row in found:
        assert row["prompt"] == ""
        sides = [
            next(text for text in LABELS if text.startswith(row[side])) for side in ("chosen", "rejected")
        ]
        assert [LABELS[text] for text in sides] == [True, False]
        counts = [len(row[side].split()) for side in ("chosen", "rejected")]
        assert counts[0] == counts[1]
        assert 20 <= counts[0] <= 30


def test_no_review_is_in_two_parts_and_the_same_options_give_the_same_files(tmp_path: Path) -> None:
    counts = write_files(LABELS, tmp_path / "a", words=40, seed=0)
    write_files(dict(reversed(LABELS.items())), tmp_path / "b", words=40, seed=0)
    for name, count in counts.items():
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        rows = [json.loads(line) for line in (tmp_path / "a" / name).read_text().splitlines()]
        assert len(rows) == count > 0
        expected = {"preferences_train": "train", "prompts_train": "prompts"}.get(name[:-6], "evaluation")
        for row in rows:
            for begun in [row[key] for key in ("prompt", "chosen", "rejected") if row.get(key)]:
                assert part_of(next(text for text in LABELS if text.startswith(begun))) == expected
