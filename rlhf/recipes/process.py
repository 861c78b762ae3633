"""A stage as a process: its output line by line under its name, signals passed on, how it ended."""

from __future__ import annotations

import codecs
import os
import re
import signal
import subprocess
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, TextIO

OWN_LINE = re.compile(r"rlhf \w+(?: \[rank \d+\])?: (.*)")
"""How a command says, in one line, why it ended."""


class StageEnded(Exception):  # noqa: N818 - a signal that the user sends is no error
    """A stage failed or was stopped; the recipe ends with its exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Signals:
    """Notes SIGINT and SIGTERM and passes each on to the process group of the stage that runs."""

    def __init__(self) -> None:
        self.number = 0
        self.group: int | None = None
        self._previous: dict[int, Callable[[int, types.FrameType | None], object] | int | None] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def expect_none(self, label: str) -> None:
        """Leave before the stage ``label`` if a signal has arrived."""
        if self.number:
            raise StageEnded(
                f"stopped by {signal.Signals(self.number).name} at {label}; the same command goes on there",
                128 + self.number,
            )

    def _note(self, number: int, _frame: types.FrameType | None) -> None:
        self.number = number
        if self.group is not None:
            send(self.group, number)


def run(
    words: Sequence[str],
    *,
    label: str,
    environment: Mapping[str, str],
    signals: Signals,
    keep: Sequence[int],
    out: TextIO,
) -> None:
    """Run a stage's command to its end.

    Args:
        words: the program and its arguments.
        label: stands before each line of its output.
        environment: of the process.
        signals: those that are passed on to it.
        keep: file descriptors that it inherits.
        out: where its output, both kinds in one, goes to.

    Raises:
        StageEnded: its exit status was not 0, or a signal had arrived.
    """
    process = subprocess.Popen(
        words,
        env={**environment, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches us alone, and the stage through us
        pass_fds=keep,
    )
    signals.group = process.pid
    if signals.number:
        send(process.pid, signals.number)  # it arrived in between
    said = ""
    try:
        assert process.stdout is not None
        for line in lines(process.stdout):
            out.write(f"[{label}] {line}\n")
            out.flush()
            said = match[1] if (match := OWN_LINE.fullmatch(line)) else said
        status = process.wait()
    except BaseException:
        send(process.pid, signal.SIGTERM)
        process.wait()
        raise
    finally:
        signals.group = None
    if status:
        signals.expect_none(label)
        raise _failure(label, status, said)


def lines(stream: IO[bytes]) -> Iterator[str]:
    """Lines of a stream as they come, also those that a progress bar writes over one another."""
    decoder, rest = codecs.getincrementaldecoder("utf-8")("replace"), ""
    while chunk := os.read(stream.fileno(), 65536):
        *whole, rest = re.split(r"[\r\n]+", rest + decoder.decode(chunk))
        yield from filter(str.strip, whole)
    if rest.strip():
        yield rest


def send(group: int, number: int) -> None:
    """Send a signal to every process of a group, if there is still one."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def _failure(label: str, status: int, said: str) -> StageEnded:
    if status < 0:
        return StageEnded(f"stage {label} was ended by {signal.Signals(-status).name}", 128 - status)
    return StageEnded(f"stage {label} ended with status {status}" + (f": {said}" if said else ""), status)
