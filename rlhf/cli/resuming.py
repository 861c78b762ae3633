"""Going on with a half-written file of responses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rlhf.cli.application import Place
from rlhf.data.rows import Prompt

FREE = ("resume:", "micro_batch_size:")
"""Settings that change no response."""


def expect_same_settings(place: Place, file: Path) -> None:
    """Refuse to go on with what other settings began.

    Raises:
        ValueError: there is nothing to go on with, or a setting has changed.
    """
    settings = place.folder / "config.yaml"
    if not file.exists() or not settings.exists():
        raise ValueError(f"resume=true, but {place.folder} holds no {file.name} to go on with")
    before, now = (
        [line for line in text.splitlines() if not line.startswith(FREE)]
        for text in (settings.read_text(encoding="utf-8"), place.resolved)
    )
    changed = [" ".join(line.split()) for line in now if line not in before]
    gone = [" ".join(line.split()) for line in before if line not in now]
    if before != now:
        raise ValueError(
            f"resume=true, but {file} was begun with other settings ({', '.join(gone) or 'fewer'}; "
            f"now {', '.join(changed) or 'fewer'}): choose another name=…; nothing was changed"
        )


def keep_finished(file: Path, prompts: Sequence[Prompt], samples: int) -> int:
    """Cut the file after the last prompt that has all its responses, and say how many have.

    Args:
        file: JSON lines, ``samples`` for each prompt, in the order of the prompts; the end may be missing.
        prompts: what is to be answered, as the rows have it.
        samples: lines that a prompt gets.

    Raises:
        ValueError: a line is not JSON, or answers another prompt than the one in its place.
    """
    lines = file.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()  # cut while it was written
    done = len(lines) // samples
    lines = lines[: done * samples]
    for number, line in enumerate(lines):
        wanted = list(
            prompts[number // samples : number // samples + 1]
        )  # none where the file of prompts is shorter now
        if [_prompt(line, f"{file}, line {number + 1}")] != wanted:
            raise ValueError(
                f"{file}, line {number + 1} answers another prompt than that of the prompts' file"
            )
    with file.open("r+b") as out:
        out.truncate(sum(map(len, lines)))
    return done


def _prompt(line: bytes, place: str) -> object:
    try:
        return json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place} is no response of rlhf generate: {error}") from None
