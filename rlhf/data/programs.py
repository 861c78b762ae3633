"""``python -m rlhf.data.programs FOLDER``: small programming tasks with unit tests, as JSON lines.

A task is one line in words, «3 more than x», and its answer one expression of Python. Three files are
written, and no task stands in two of them:

    test.jsonl         nothing is trained on them
    supervised.jsonl   with a teacher's answers, ``--wrong SHARE`` of them wrong
    prompts.jsonl      to be practised on with ``reward=unit_tests reward.with_prompt=true``

A row has ``prompt`` (the task, and the beginning of a function ``f``), ``response`` (the rest of it),
``answer`` (the right rest) and ``tests``. The same options give the same files.

``explain`` and ``revise`` are a teacher for imitation from language feedback (``rlhf refine``): the first
says in words what a response got wrong, the second writes what those words ask for, and is right in two
cases of three.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import random
import string
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

NUMBERS = (2, 3, 5, 10)
"""Inputs of the tests."""
TEXTS = ("abcdefghijklmn", "xyzabcuvwklmop")
RIGHT = 2 / 3
"""How often ``revise`` is right."""

ARITHMETIC = {
    "{a} more than x": "x + {a}",
    "{a} less than x": "x - {a}",
    "{a} times x": "x * {a}",
    "x taken from {a}": "{a} - x",
    "{a} more than {b} times x": "x * {b} + {a}",
    "{a} less than {b} times x": "x * {b} - {a}",
    "{b} times the sum of x and {a}": "(x + {a}) * {b}",
    "{b} times what is {a} less than x": "(x - {a}) * {b}",
}
"""Tasks of a number x, with digits a and b: the words, and the answer."""
SPELLING = {
    "the first {a} letters of x": "x[:{a}]",
    "x without its first {a} letters": "x[{a}:]",
    "the last {a} letters of x": "x[-{a}:]",
    "x without its last {a} letters": "x[:-{a}]",
    "x, then the letter {c}": "x + '{c}'",
    "the letter {c}, then x": "'{c}' + x",
    "x {a} times, then the letter {c}": "x * {a} + '{c}'",
    "{a} times the letter {c}, then x": "'{c}' * {a} + x",
}
"""Tasks of a text x, with a digit a and a letter c."""
MISTAKES = (("+", "-"), ("*", "+"), ("[:-", "[-"), ("[-", "[:-"), ("[:", "["), ("-", "+"), (":]", "]"))
"""What a wrong answer has in place of what: the first that occurs."""


def tasks() -> list[dict[str, Any]]:
    """Every task as a row with a right response."""
    rows: dict[str, dict[str, Any]] = {}
    for forms, inputs in ((ARITHMETIC, NUMBERS), (SPELLING, TEXTS)):
        for words, answer in forms.items():
            for a, b, c in itertools.product(range(1, 10), range(2, 10), string.ascii_lowercase):
                holes = {"a": a, "b": b, "c": c}
                task = words.format(**holes)
                if task not in rows:  # not every task has all three
                    rows[task] = _row(task, answer.format(**holes), inputs)
    return list(rows.values())


def mistaken(answer: str) -> str:
    """A wrong answer that looks like the right one."""
    for right, wrong in MISTAKES:
        if right in answer:
            return answer.replace(right, wrong, 1)
    raise ValueError(f"{answer!r} has nothing that a mistake is known for")


def misled(rows: Sequence[dict[str, Any]], share: float, *, seed: int) -> list[dict[str, Any]]:
    """The rows, each with probability ``share`` with a wrong response."""
    chance = random.Random(f"{seed} wrong")
    return [row | {"response": mistaken(row["response"])} if chance.random() < share else row for row in rows]


def explain(prompts: list[str], responses: list[str], columns: list[dict[str, Any]]) -> list[str]:
    """What a teacher who knows the answer says of each response."""
    return [
        f"f returns{response}, but the task asks for{row['answer']}"
        for response, row in zip(responses, columns, strict=True)
    ]


def revise(prompts: list[str], responses: list[str], columns: list[dict[str, Any]]) -> list[str]:
    """What the feedback asks for in two cases of three, otherwise a mistake; a hash of the texts draws."""
    revised = []
    for prompt, response, row in zip(prompts, responses, columns, strict=True):
        wanted = row["feedback"].rpartition("asks for")[2]
        drawn = int.from_bytes(hashlib.sha256(f"{prompt}{response}".encode()).digest()[:8], "big") / 2**64
        revised.append(wanted if drawn < RIGHT else mistaken(wanted))
    return revised


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files and say how many rows each has."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf.data.programs", description="Write small programming tasks as JSON lines."
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    for name, size in {"test": 100, "supervised": 300, "prompts": 300}.items():
        parser.add_argument(
            f"--{name}", type=int, default=size, help=f"rows of {name}.jsonl (default {size})"
        )
    parser.add_argument(
        "--wrong", type=float, default=0.0, help="share of wrong answers in supervised.jsonl (default 0)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order of the tasks (default 0)")
    options = parser.parse_args(arguments)
    sizes = {name: getattr(options, name) for name in ("test", "supervised", "prompts")}
    rows = tasks()
    if min(sizes.values()) < 1 or sum(sizes.values()) > len(rows):
        parser.error(f"--test, --supervised and --prompts must be at least 1, together at most {len(rows)}")
    if not 0 <= options.wrong <= 1:
        parser.error(f"--wrong must be in [0, 1], got {options.wrong:g}")
    random.Random(f"{options.seed} order").shuffle(rows)
    try:
        for name, part in _shared_out(rows, sizes):
            taught = misled(part, options.wrong, seed=options.seed) if name == "supervised" else part
            _write(options.folder / f"{name}.jsonl", taught)
            sys.stdout.write(f"{options.folder / name}.jsonl: {len(part)} rows\n")
    except OSError as error:
        sys.exit(str(error))


def _row(words: str, answer: str, inputs: Sequence[int | str]) -> dict[str, Any]:
    """A task with its tests: what the answer gives for each input."""
    tests = [f"assert f({x!r}) == {eval(answer, {}, {'x': x})!r}" for x in inputs]  # our own expression
    rest = f" {answer}"
    return {"prompt": f"# {words}\nf = lambda x:", "response": rest, "answer": rest, "tests": tests}


def _shared_out(
    rows: Sequence[dict[str, Any]], sizes: dict[str, int]
) -> Iterator[tuple[str, Sequence[dict[str, Any]]]]:
    first = 0
    for name, size in sizes.items():
        yield name, rows[first : first + size]
        first += size


def _write(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    unfinished.replace(file)


if __name__ == "__main__":
    main()
