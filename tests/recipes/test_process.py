"""A stage as a process: output under its name, signals passed on, how it ended."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf.recipes import process
from rlhf.recipes.process import Signals, StageEnded

WAITS = """
import signal, sys, time
signal.signal(signal.{name}, lambda *_: sys.exit({status}))
print("up", flush=True)
time.sleep(60)
"""


@pytest.fixture
def signals() -> Iterator[Signals]:
    with Signals() as noted:
        yield noted


class Output(io.StringIO):
    """What was written, and what is done at the first line."""

    def __init__(self, *signals: int) -> None:
        super().__init__()
        self.signals = list(signals)

    def write(self, text: str) -> int:
        while self.signals:
            os.kill(os.getpid(), self.signals.pop())
        return super().write(text)


def ran(source: str, signals: Signals, out: io.StringIO | None = None, **environment: str) -> str:
    out = out or io.StringIO()
    process.run(
        [sys.executable, "-c", source],
        label="a/b",
        environment=os.environ | environment,
        signals=signals,
        keep=(),
        out=out,
    )
    return out.getvalue()


def test_every_line_stands_under_the_name_of_its_stage(signals: Signals) -> None:
    source = "import sys; print('one'); sys.stderr.write('\\rtwo 1%\\rtwo 2%\\n\\n'); print('drei ½', end='')"
    assert (
        ran(source, signals, PYTHONIOENCODING="utf-8")
        == "[a/b] one\n[a/b] two 1%\n[a/b] two 2%\n[a/b] drei ½\n"
    )


def test_a_character_that_comes_in_two_parts_is_one() -> None:
    reading, writing = os.pipe()

    def write() -> None:
        for byte in "½\n".encode():
            os.write(writing, bytes([byte]))
        os.close(writing)

    thread = threading.Thread(target=write)
    thread.start()
    with os.fdopen(reading, "rb") as stream:
        assert list(process.lines(stream)) == ["½"]
    thread.join()


def test_a_stage_that_failed_ends_with_its_status_and_its_line(signals: Signals) -> None:
    source = "import sys; print('rlhf sft: no rows'); print('after it'); sys.exit(3)"
    with pytest.raises(StageEnded, match=r"^stage a/b ended with status 3: no rows$") as ended:
        ran(source, signals)
    assert ended.value.status == 3


def test_a_line_of_one_rank_counts_and_one_of_another_program_does_not(signals: Signals) -> None:
    source = "import sys; print('rlhf rl [rank 1]: NaN'); print('exit code 1: x'); sys.exit(1)"
    with pytest.raises(StageEnded, match=r"^stage a/b ended with status 1: NaN$"):
        ran(source, signals)
    with pytest.raises(StageEnded, match=r"^stage a/b ended with status 1$"):
        ran("import sys; sys.exit('broken')", signals)


def test_a_stage_that_was_killed_is_told_by_the_signal(signals: Signals) -> None:
    with pytest.raises(StageEnded, match=r"^stage a/b was ended by SIGKILL$") as ended:
        ran("import os; os.kill(os.getpid(), 9)", signals)
    assert ended.value.status == 137


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_is_passed_on_and_the_stage_waited_for(signals: Signals, name: str) -> None:
    number = signal.Signals[name]
    with pytest.raises(
        StageEnded, match=rf"^stopped by {name} at a/b; the same command goes on there$"
    ) as ended:
        ran(WAITS.format(name=name, status=7), signals, Output(number))
    assert ended.value.status == 128 + number


def test_a_signal_that_a_stage_outlives_stops_the_recipe_before_the_next(signals: Signals) -> None:
    out = Output(signal.SIGINT)
    assert ran(WAITS.format(name="SIGINT", status=0), signals, out) == "[a/b] up\n"
    with pytest.raises(StageEnded, match=r"^stopped by SIGINT at next; "):
        signals.expect_none("next")


def test_a_signal_before_the_start_reaches_the_stage(signals: Signals) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(StageEnded, match=r"^stopped by SIGTERM at a/b"):
        ran("import time; time.sleep(60)", signals)


def test_signals_are_those_of_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Signals():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_stage_ends_when_its_output_cannot_be_written(signals: Signals) -> None:
    out = io.StringIO()
    out.close()
    with pytest.raises(ValueError, match="closed file"):
        ran("print('x', flush=True); import time; time.sleep(60)", signals, out)


def test_a_stage_inherits_what_it_is_given_and_no_terminal(signals: Signals, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        process.run(
            [
                sys.executable,
                "-c",
                f"import os, sys; os.write({file.fileno()}, sys.stdin.read().encode() + b'x')",
            ],
            label="a",
            environment=os.environ,
            signals=signals,
            keep=(file.fileno(),),
            out=io.StringIO(),
        )
    assert (tmp_path / "file").read_text() == "x"
