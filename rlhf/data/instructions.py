"""``python -m rlhf.data.instructions PROMPTS FOLDER CONSTRAINT …``: prompts with constraints to be checked.

The checkers are those of IFEval (Zhou et al. 2023) in the package ``if-verifiable``. It brings no prompts:
every prompt of the file PROMPTS gets one of the constraints, after those of ``--always``, in words at its
end and for ``reward=instructions`` in the column ``instructions``. A constraint is a name such as
``punctuation:no_comma``, with or without arguments:
``length_constraints:number_words={"num_words": 15, "relation": "less than"}``. Arguments that are left open
are drawn for each prompt.

Two files are written, ``prompts.jsonl`` and ``test.jsonl``. A hash of the prompt chooses its constraint and
whether it is one of the ``--test`` held-out ones; prompts that occur twice are taken once. The same options
give the same files.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import logging
import random
import sys
import types
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlhf.data.rows import PromptRow, prompt_row
from rlhf.data.sources import read_rows

PACKAGE = "if_verifiable"


@cache
def registry() -> dict[str, Any]:
    """Every checker's class by the name of its constraint.

    Only the package's ``ifeval`` part is imported: the package as a whole downloads files while it is.

    Raises:
        ValueError: the package is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError('if-verifiable is not installed; get it with: pip install "rlhf[tasks]"')
    whole = sys.modules.get(PACKAGE)
    hollow = types.ModuleType(PACKAGE)
    hollow.__path__ = list(spec.submodule_search_locations)
    sys.modules[PACKAGE] = hollow if whole is None else whole
    try:
        found = importlib.import_module(f"{PACKAGE}.ifeval.instructions_registry").INSTRUCTION_DICT
    finally:
        if whole is None:
            del sys.modules[PACKAGE]
    importlib.import_module("langdetect").DetectorFactory.seed = 0  # else its verdicts are random
    logging.getLogger("absl").setLevel(logging.ERROR)
    return dict(found)


def checker(name: str, arguments: dict[str, Any]) -> Callable[[str], bool]:
    """Whether a text follows a constraint.

    Raises:
        ValueError: no such constraint, or arguments that it does not take; or, when called, its checker
            needs data of NLTK that are not there.
    """
    check = _built(name, arguments)[0].check_following

    def follows(text: str) -> bool:
        try:
            return bool(check(text))
        except LookupError as error:
            raise ValueError(f"{name} needs NLTK's data: python -m nltk.downloader punkt_tab") from error

    return follows


def constrained(
    row: PromptRow, constraints: Sequence[tuple[str, dict[str, Any]]], *, seed: int
) -> dict[str, Any]:
    """The row with the constraints, in this order, in its prompt and in its column ``instructions``.

    Raises:
        ValueError: as ``checker``.
    """
    state = random.getstate()  # the package draws from the global generator
    random.seed(f"{seed} {row.prompt}")
    try:
        built = [_built(name, arguments) for name, arguments in constraints]
    finally:
        random.setstate(state)
    words = " ".join(description for _, description in built)
    column = [
        {"id": name, "arguments": _drawn(check)}
        for (name, _), (check, _) in zip(constraints, built, strict=True)
    ]
    return {"prompt": _with_words(row.prompt, words), "instructions": column, **row.columns}


def constraint(word: str) -> tuple[str, dict[str, Any]]:
    """``NAME`` or ``NAME={JSON}``.

    Raises:
        ValueError: unknown, or its arguments are no JSON object.
    """
    name, _, text = word.partition("=")
    if name not in registry():
        raise ValueError(f"there is no constraint {name!r}; there are {', '.join(sorted(registry()))}")
    try:
        arguments = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}: its arguments are broken JSON: {error.msg}") from error
    if not isinstance(arguments, dict):
        raise ValueError(f"{name}: its arguments must be a JSON object, got {text}")
    return name, arguments


def write_files(
    rows: Sequence[PromptRow],
    constraints: Sequence[tuple[str, dict[str, Any]]],
    folder: Path,
    *,
    always: Sequence[tuple[str, dict[str, Any]]] = (),
    test: int,
    seed: int,
) -> dict[str, int]:
    """Write ``prompts.jsonl`` and ``test.jsonl``.

    Args:
        rows: the prompts.
        constraints: each prompt gets one of them.
        folder: made when it does not exist; files of the same names are replaced.
        always: each prompt gets all of these, before the one.
        test: rows of ``test.jsonl``.
        seed: of the shuffle and the draws.

    Returns:
        rows of each file.

    Raises:
        ValueError: fewer than ``test`` + 1 different prompts, or as ``checker``.
    """
    ordered = {_digest(row.prompt, seed): row for row in rows}
    if len(ordered) <= test:
        raise ValueError(
            f"{len(ordered)} different prompts cannot be shared out with {test} of them for test"
        )
    made = []
    for digest, row in sorted(ordered.items()):
        own = constraints[int(digest[-8:], 16) % len(constraints)]
        made.append(json.dumps(constrained(row, [*always, own], seed=seed), ensure_ascii=False) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    files = {"test.jsonl": made[:test], "prompts.jsonl": made[test:]}
    for file, lines in files.items():
        (folder / file).write_text("".join(lines), encoding="utf-8")
    return {file: len(lines) for file, lines in files.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files and say how many rows each has."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf.data.instructions", description="Give prompts constraints that can be checked."
    )
    parser.add_argument("prompts", metavar="PROMPTS", help="JSONL or Parquet file whose rows have a prompt")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("constraints", nargs="+", metavar="CONSTRAINT", help="NAME or NAME={JSON arguments}")
    parser.add_argument(
        "--always", action="append", default=[], metavar="CONSTRAINT", help="on every prompt, besides the one"
    )
    parser.add_argument("--test", type=int, default=100, help="rows of test.jsonl (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle and the draws (default 0)")
    options = parser.parse_args(arguments)
    if options.test < 1:
        parser.error("--test must be at least 1")
    try:
        rows = [prompt_row(row) for row in read_rows(options.prompts)]
        always = [constraint(word) for word in options.always]
        chosen = [constraint(word) for word in options.constraints]
        counts = write_files(
            rows, chosen, options.folder, always=always, test=options.test, seed=options.seed
        )
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    for name, count in counts.items():
        sys.stdout.write(f"{options.folder / name}: {count} rows\n")


def _built(name: str, arguments: dict[str, Any]) -> tuple[Any, str]:
    """The checker and its description in words."""
    if name not in registry():
        raise ValueError(f"there is no constraint {name!r}")
    built = registry()[name](name)
    try:
        return built, built.build_description(**arguments)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{name} does not take the arguments {json.dumps(arguments)}: {error}") from error


def _drawn(check: Any) -> dict[str, Any]:
    """The arguments of a checker, those that it drew included."""
    return {name: value for name, value in (check.get_instruction_args() or {}).items() if value is not None}


def _with_words(prompt: str | list[dict[str, Any]], words: str) -> str | list[dict[str, Any]]:
    if isinstance(prompt, str):
        return f"{prompt} {words}"
    last = prompt[-1]
    return [*prompt[:-1], {**last, "content": f"{last['content']} {words}"}]


def _digest(prompt: str | list[dict[str, Any]], seed: int) -> str:
    return hashlib.sha256(f"{seed} {json.dumps(prompt, sort_keys=True)}".encode()).hexdigest()


if __name__ == "__main__":
    main()
