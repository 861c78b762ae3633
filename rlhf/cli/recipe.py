"""``rlhf recipe``: commands one after the other, once or in rounds, from one readable file."""

from __future__ import annotations

import fcntl
import importlib
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlhf import config
from rlhf.cli.application import INPUT_ERRORS, Command, Place
from rlhf.cli.composition import compose, nearest
from rlhf.cli.explanation import explained
from rlhf.cli.main import COMMANDS
from rlhf.cli.pieces import single_process
from rlhf.recipes import process, record
from rlhf.recipes.plan import Planned, Recipe, plan
from rlhf.recipes.record import Record

FREE = ("micro_batch_size", "micro_batch_tokens", "timeout_minutes")
"""Keys of a command that change no result, and may be other ones when a recipe goes on."""


@dataclass(kw_only=True, slots=True)
class Step:
    """A stage of one round, checked against its command, and how far it is."""

    planned: Planned
    launcher: list[str]
    """What starts it; empty for a process of its own."""
    trains: bool
    record: Record
    """Of what it is now."""
    before: Record | None
    """Of what lies in its folder."""

    @property
    def state(self) -> str:
        """For people."""
        if self.before is None:
            return "to be run"
        return "finished" if self.before.finished else "begun"

    @property
    def words(self) -> list[str]:
        """What is typed after the launcher."""
        return [self.planned.command, *self.planned.arguments]


def recipe(config: Recipe, place: Place) -> None:
    """Check every stage, then run those that are not finished."""
    single_process(place, "rlhf recipe")
    steps = checked(plan(config), _launcher(config))
    if config.dry_run:
        for step in steps:
            typed = shlex.join([*(step.launcher or ["rlhf"]), *step.words])
            sys.stdout.write(f"# {step.planned.label}, {step.state}\n{typed}\n")
        return
    with alone_in(place.folder) as lock, process.Signals() as signals:
        (place.folder / "config.yaml").write_text(place.resolved, encoding="utf-8")
        for number, step in enumerate(steps, 1):
            _say(f"{number} of {len(steps)}, {step.planned.label}: {step.state}")
            if step.before is not None and step.before.finished:
                continue
            signals.expect_none(step.planned.label)
            _run(step, place, signals, lock)
    _say(f"{len(steps)} stages are finished: {place.folder}")


def checked(stages: list[Planned], launcher: list[str]) -> list[Step]:
    """Every stage, composed as its command would and held against what lies in its folder.

    Args:
        stages: in their order.
        launcher: what starts those that train; empty for processes of their own.

    Raises:
        ValueError: a command does not exist or would refuse its overrides; a folder was made by something
            else, or with other settings.
    """
    steps: list[Step] = []
    commands: dict[str, Command] = {}
    for planned in stages:
        try:
            if planned.command not in commands:
                commands[planned.command] = _command(planned.command)
            settings = _settings(planned, commands[planned.command])
        except INPUT_ERRORS as error:
            line = explained(planned.command, error, planned.overrides)
            raise ValueError(f"stage {planned.label}: {line}") from None
        follows = steps[-1].record.fingerprint if steps else ""
        now = Record(command=planned.command, settings=settings, follows=follows)
        before = record.read(planned.folder)
        if before is not None:
            record.expect_same(before, now, planned.folder)
        trains = issubclass(commands[planned.command].schema, config.Job)
        starter = launcher if trains else []
        steps.append(Step(planned=planned, launcher=starter, trains=trains, record=now, before=before))
    return steps


def _command(name: str) -> Command:
    known = [known for known in COMMANDS if known != "recipe"]
    if name not in known:
        hint = nearest(name, known) or f"; there are {', '.join(known)}"
        raise ValueError(f"there is no command {name!r} for a stage{hint}")
    command: Command = importlib.import_module(f"rlhf.cli.{name}").COMMAND
    config.register({name: command.schema})
    return command


def _settings(planned: Planned, command: Command) -> dict[str, Any]:
    """The command's whole configuration by dotted key."""
    raw = compose(planned.command, planned.arguments)
    config.build(raw, command.schema)
    tree = OmegaConf.to_container(raw, resolve=True, enum_to_str=True)
    return {key: value for key, value in _leaves(tree) if key not in FREE}


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, branch in tree.items():
        if isinstance(branch, dict) and branch:
            yield from _leaves(branch, f"{prefix}{name}.")
        else:
            yield prefix + str(name), branch


def _launcher(config: Recipe) -> list[str]:
    """The words that start a training stage; none for the default.

    Raises:
        ValueError: there is no such program.
    """
    words = shlex.split(config.launcher or "")
    if words and shutil.which(words[0]) is None:
        raise ValueError(f"launcher must begin with a program, got {words[0]!r}, which is not found")
    return words


def _run(step: Step, place: Place, signals: process.Signals, lock: int) -> None:
    """Run a stage, from where it was stopped if it can go on; its record says finished afterwards."""
    folder, words = step.planned.folder, step.words
    if _can_continue(step):
        words.append("resume=true")
    elif folder.exists():
        record.remove(folder)
    step.record.write(folder)
    _say(shlex.join([*(step.launcher or ["rlhf"]), *words]))
    started = time.monotonic()
    process.run(
        [*(step.launcher or [sys.executable, "-m", "rlhf"]), *words],
        label=step.planned.label,
        environment=place.environment,
        signals=signals,
        keep=(lock,),
        out=sys.stdout,
    )
    step.record.finished = True
    step.record.write(folder)
    _say(f"{step.planned.label}: finished in {time.monotonic() - started:.0f} s")


def _can_continue(step: Step) -> bool:
    """Whether what lies in the folder is enough for ``resume=true``."""
    if step.before is None:
        return False
    folder = step.planned.folder
    if step.trains:
        return any((folder / "checkpoints").glob("step_*"))
    return "resume" in step.record.settings and (folder / "responses.jsonl").exists()


@contextmanager
def alone_in(folder: Path) -> Iterator[int]:
    """A lock on the recipe's folder, as a file descriptor that its stages inherit.

    So it is held as long as a stage lives, even one whose recipe was killed.

    Raises:
        ValueError: somebody else has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{folder} is at work: another rlhf recipe runs there, or a stage of one that was killed"
            ) from None
        yield file.fileno()


def _say(line: str) -> None:
    sys.stdout.write(f"rlhf recipe: {line}\n")
    sys.stdout.flush()


COMMAND = Command(schema=Recipe, job=recipe)
