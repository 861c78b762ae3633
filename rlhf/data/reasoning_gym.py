"""``python -m rlhf.data.reasoning_gym TASK FOLDER KEY=VALUE …``: a task of reasoning-gym, as JSON lines.

The package generates endless problems of about a hundred kinds and scores answers to them. Three files are
written, and no question stands in two of them or twice in one:

    test.jsonl         the first questions that the seed gives; nothing is trained on them
    supervised.jsonl   the next ones, to learn the form of an answer from
    prompts.jsonl      the next ones, to be practised on with ``reward=reasoning_gym``

A row has ``prompt`` (the question), ``response`` (a right answer), ``answer`` (the same without a blank
before it), and ``task`` and ``entry``, which the scorer needs. ``KEY=VALUE`` sets a field of the task's
configuration. ``--unanswered SHARE`` makes an overcautious teacher: so many of the responses in
``supervised.jsonl``, drawn at random, are a question mark. The same options give the same files, and more
training rows leave the test file as it is.
Neighbouring seeds share nearly all problems, because the package seeds problem i with seed + i: two data
sets that must not overlap are cut from one seed, as here.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

TRIES = 10
"""Problems that are generated for each one wanted, at most; the others are repetitions."""


def problems(
    task: str, count: int, *, seed: int, settings: dict[str, Any], template: str = "{question}"
) -> list[dict[str, Any]]:
    """The first ``count`` different problems of a task, as rows.

    Args:
        task: its name.
        count: rows.
        seed: of the first problem.
        settings: of the task's configuration.
        template: the prompt, in which ``{question}``, ``{answer}`` and ``{metadata[…]}`` are the problem's.

    Raises:
        ValueError: the package is missing, there is no such task or setting, it has too few problems, or its
            own answers do not score 1 once they were written as JSON.
    """
    dataset = _dataset(task, size=TRIES * count, seed=seed, settings=settings)
    rows: dict[str, dict[str, Any]] = {}
    for entry in _entries(dataset, task):
        row = _row(task, entry, template)
        rows.setdefault(row["prompt"], row)
        if len(rows) == count:
            return list(rows.values())
    raise ValueError(
        f"{task} gave {len(rows)} different problems in {TRIES * count} tries, {count} are wanted: "
        "ask for fewer, or widen its settings"
    )


def left_open(rows: Sequence[dict[str, Any]], share: float, *, seed: int) -> list[dict[str, Any]]:
    """The rows, each with probability ``share`` with a question mark for its response."""
    chance = random.Random(f"{seed} unanswered")
    return [
        row | {"response": row["response"].removesuffix(row["answer"]) + "?"}
        if chance.random() < share
        else row
        for row in rows
    ]


def write_files(rows: Sequence[dict[str, Any]], folder: Path, sizes: dict[str, int]) -> None:
    """Share ``rows`` out to files ``NAME.jsonl`` of the given sizes, in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for name, size in sizes.items():
        part, first = rows[first : first + size], first + size
        unfinished = folder / f"{name}.unfinished"
        unfinished.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
        unfinished.replace(folder / f"{name}.jsonl")


def setting(word: str) -> tuple[str, Any]:
    """``KEY=VALUE``, the value as JSON where it is JSON and as text otherwise.

    Raises:
        ValueError: there is no key or no ``=``.
    """
    key, equals, value = word.partition("=")
    if not key or not equals:
        raise ValueError(f"a setting is given as KEY=VALUE, got {word!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files and say how many rows each has."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf.data.reasoning_gym", description="Write a task of reasoning-gym as JSON lines."
    )
    parser.add_argument("task", metavar="TASK", help="for instance chain_sum")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of the task's configuration")
    for name, size in {"test": 200, "supervised": 2000, "prompts": 2000}.items():
        parser.add_argument(
            f"--{name}", type=int, default=size, help=f"rows of {name}.jsonl (default {size})"
        )
    parser.add_argument("--prompt", default="{question}", help="template of a prompt (default {question})")
    parser.add_argument(
        "--unanswered",
        type=float,
        default=0.0,
        help="share of supervised.jsonl with ? for a response (default 0)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the problems (default 0)")
    options = parser.parse_args(arguments)
    sizes = {name: getattr(options, name) for name in ("test", "supervised", "prompts")}
    if min(sizes.values()) < 1:
        parser.error("--test, --supervised and --prompts must be at least 1")
    if not 0 <= options.unanswered <= 1:
        parser.error(f"--unanswered must be in [0, 1], got {options.unanswered:g}")
    try:
        settings = dict(map(setting, options.settings))
        rows = problems(
            options.task,
            sum(sizes.values()),
            seed=options.seed,
            settings=settings,
            template=options.prompt,
        )
        if options.unanswered:
            taught = slice(options.test, options.test + options.supervised)
            rows[taught] = left_open(rows[taught], options.unanswered, seed=options.seed)
        write_files(rows, options.folder, sizes)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    for name, size in sizes.items():
        sys.stdout.write(f"{options.folder / name}.jsonl: {size} rows\n")


def _dataset(task: str, *, size: int, seed: int, settings: dict[str, Any]) -> Any:
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        raise ValueError('reasoning-gym is not installed; get it with: pip install "rlhf[tasks]"') from error
    if task not in DATASETS:
        raise ValueError(f"reasoning-gym has no task {task!r}; it has {', '.join(sorted(DATASETS))}")
    known = [item.name for item in fields(DATASETS[task][1]) if item.name not in ("seed", "size")]
    if unknown := sorted(set(settings) - set(known)):
        raise ValueError(f"{task} has no setting {unknown[0]!r}; it has {', '.join(known)}")
    try:
        return create_dataset(task, size=size, seed=seed, **settings)
    except Exception as error:  # each task checks its settings in its own way
        raise ValueError(f"{task} refuses its settings: {' '.join(str(error).split())}") from error


def _entries(dataset: Any, task: str) -> Iterator[dict[str, Any]]:
    """Problems as JSON gives them back, each with an answer that scores 1."""
    for number in range(len(dataset)):
        entry = dataset[number]
        if not isinstance(entry["answer"], str):
            raise ValueError(f"{task}: problem {number} has no answer that could be verified")
        try:
            stored = json.loads(json.dumps(entry))
        except TypeError as error:
            raise ValueError(f"{task}: problem {number} cannot be written as JSON: {error}") from error
        if (score := dataset.score_answer(entry["answer"].strip(), stored)) != 1:
            raise ValueError(f"{task}: the answer to problem {number} scores {score} once it is JSON, not 1")
        yield stored


def _row(task: str, entry: dict[str, Any], template: str) -> dict[str, Any]:
    """The prompt and the answer, a blank or a line break between them."""
    try:
        prompt, answer = template.format_map(entry), entry["answer"]
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(f"the template {template!r} does not fit a problem of {task}: {error}") from error
    blank = "" if prompt[-1:].isspace() else " "
    return {"prompt": prompt, "response": blank + answer, "answer": answer, "task": task, "entry": entry}


if __name__ == "__main__":
    main()
