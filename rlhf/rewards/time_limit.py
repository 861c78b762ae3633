"""A limit on how long a block may run, for code that others wrote."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN: float = 1.0
"""Seconds after which a block that swallowed the exception gets it once more."""
SOONEST: float = 1e-3
"""Seconds until an outer limit that passed while an inner block ran takes effect; 0 would switch it off."""


class TimeLimitError(BaseException):
    """The time was up. No ``Exception``, so that a block which catches those cannot swallow it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise ``TimeLimitError`` in the block once ``seconds`` have passed.

    By the alarm signal: it interrupts whatever Python runs on the main thread – loops, sleeps, locks, reads
    from a socket – but not a C function until that returns. Blocks nest; the outer limit counts on.

    Raises:
        ValueError: not called on the main thread, where alone Python handles signals.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeLimitError

    started = time.monotonic()
    handler = signal.signal(signal.SIGALRM, stop)
    outer, again = signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if outer:
            left = outer - (time.monotonic() - started)
            signal.setitimer(signal.ITIMER_REAL, max(left, SOONEST), again)
