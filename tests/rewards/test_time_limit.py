from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from rlhf.rewards import time_limit as module
from rlhf.rewards.time_limit import TimeLimitError, time_limit


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    before = signal.getsignal(signal.SIGALRM)
    yield
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def expect_stopped(block: Callable[[], object], seconds: float = 0.05) -> None:
    started = time.monotonic()
    with pytest.raises(TimeLimitError), time_limit(seconds):
        block()
    assert time.monotonic() - started < 10  # each block would take a minute or for ever


def sleeps() -> None:
    time.sleep(60)


def loops() -> None:
    while True:
        pass


def waits_for_a_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def test_a_block_that_ends_in_time_is_left_alone() -> None:
    with time_limit(5.0):
        done = True
    assert done


@pytest.mark.parametrize("block", [sleeps, loops, waits_for_a_lock])
def test_a_block_that_hangs_is_interrupted(block: Callable[[], object]) -> None:
    expect_stopped(block)


def test_catching_every_exception_does_not_swallow_it() -> None:
    def catches() -> None:
        try:
            sleeps()
        except Exception:
            sleeps()

    expect_stopped(catches)


def test_a_block_that_swallows_it_gets_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN", 0.05)

    def swallows() -> None:
        try:
            sleeps()
        except BaseException:
            sleeps()

    expect_stopped(swallows)


def test_the_outer_limit_counts_while_an_inner_block_runs() -> None:
    left = []

    def nests() -> None:
        with time_limit(60.0):
            time.sleep(0.1)
        left.append(signal.getitimer(signal.ITIMER_REAL)[0])

    with time_limit(50.0):
        nests()
    assert 20 < left[0] <= 49.9


def test_an_outer_limit_that_passed_meanwhile_takes_effect_after_the_inner_block() -> None:
    def outlasts() -> None:
        with time_limit(60.0):
            time.sleep(0.2)
        sleeps()

    expect_stopped(outlasts)


def test_an_inner_limit_leaves_the_outer_block_running() -> None:
    with time_limit(60.0):
        expect_stopped(sleeps)
        left, _ = signal.getitimer(signal.ITIMER_REAL)
    assert 40 < left <= 60
