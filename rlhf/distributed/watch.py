"""What ends a run whose ranks no longer meet, and names the one that is missing.

A rank that waits for the others says so (:meth:`Watch.meeting`). Once a second a thread writes where its rank
is into the ranks' common store and reads where the others are; it may block with the store. A second thread
touches no network: it counts how long the rank has waited, in ticks of its own, so that a machine that was
suspended does not count. Whoever waits longer than the timeout, or whose connection breaks, tells the others
who is missing, and all of them end. This is the same for gloo, which raises, and for NCCL, which does not
return. A lone process has no threads and is not watched.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import NoReturn

import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]

SILENT = 5
"""Ticks without a sign of life after which a rank counts as dead or stopped."""
VERDICT = "verdict"


@dataclass(kw_only=True, slots=True)
class Position:
    """Where a rank is."""

    meetings: int = 0  # entered so far; every rank enters the same ones, in the same order
    meeting: str = "the process group"  # the last of them
    waiting: bool = False  # for the others, as far as is known
    phase: str = "start-up"
    step: int = 0
    error: str = ""  # what it ended with
    beat: int = 0

    def __str__(self) -> str:
        """Phase and step."""
        return f"phase {self.phase}, step {self.step}" if self.step else f"phase {self.phase}"

    @property
    def place(self) -> str:
        """Last meeting, phase and step."""
        return f"{self.meeting} ({self})"


@dataclass(kw_only=True, slots=True)
class Verdict:
    """Why the run ends."""

    ranks: list[int]  # who is to blame
    text: str


def judged(positions: Mapping[int, Position], here: int, silent: set[int], within: str = "") -> Verdict:
    """Who keeps rank ``here`` waiting, where, and what is the matter with the first of them.

    Before all it is who ended with an error, then who gives no sign of life, then who has come to fewer
    meetings than another rank, then who is at another one than ``here``.
    """
    own, others = positions[here], {rank: at for rank, at in positions.items() if rank != here}
    first = max(positions.values(), key=lambda at: (at.meetings, at is own))
    behind = {rank for rank, at in positions.items() if at.meetings < first.meetings}
    failed = {rank for rank, at in others.items() if at.error}
    away = {rank for rank, at in others.items() if not at.waiting}
    elsewhere = {rank for rank, at in others.items() if at.place != own.place}
    ranks = sorted(failed or silent or behind or away or elsewhere)
    place = first.place if behind and not failed and not silent else own.place
    if not ranks:
        text = f"{place} failed{within}, though no rank is missing: is the network broken?"
        return Verdict(ranks=[], text=text)
    at = positions[ranks[0]]
    if failed:
        state = f"it ended with: {at.error}"
    elif silent:
        state = f"it is dead or stopped, last seen in {at}"
    else:
        state = f"it waits for {at.place} instead" if at.waiting else f"it hangs in {at}"
    who = f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
    return Verdict(ranks=ranks, text=f"{who} did not reach {place}{within}: {state}")


class Watch:
    """This process's part in the watch; idle until :meth:`start`."""

    def __init__(self) -> None:
        self._store: Store | None = None
        self._here, self._moves = Position(), 0

    def start(
        self,
        store: Store,
        *,
        rank: int,
        ranks: int,
        timeout: timedelta,
        returns_early: bool,
        report: Callable[[str], object],
    ) -> None:
        """Watch the other ranks until :meth:`stop`.

        Args:
            store: a connection of its own to what all ranks share.
            rank: this one.
            ranks: how many there are.
            timeout: how long a rank may wait for the others.
            returns_early: whether a collective returns before it is done (NCCL), so that a rank which has
                been to one may be waiting for it until its next phase.
            report: tells the user, in one line, why the run ends.
        """
        self._store, self._rank, self._report = store, rank, report
        self._returns_early = returns_early
        self._seconds = timeout.total_seconds()
        # Not so often that many ranks keep the store busy, and some ten times before the timeout.
        self._interval = min(max(1.0, ranks / 32), self._seconds / 10)
        self._here, self._moves, self._ticks = Position(), 0, 0
        self._heard = {other: (Position(), 0) for other in range(ranks) if other != rank}
        self._verdict: Verdict | None = None  # the first of any rank
        self._own_verdict: Verdict | None = None
        self._terminated = self._ending = False
        self._asked, self._over, self._last_word = threading.Event(), threading.Event(), threading.Lock()
        self._listen_for_signals()
        for work in (self._exchange, self._guard):
            threading.Thread(target=work, name=f"watch{work.__name__}", daemon=True).start()

    def stop(self) -> None:
        """Watch no longer."""
        if self._store is None:
            return
        self._over.set()
        self._store = None
        os.close(signal.set_wakeup_fd(-1))
        if self._on_sigterm is not None:
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def enter(self, phase: str, step: int | None = None) -> None:
        """This rank now does ``phase``, of the same step as before or of another."""
        self._here.phase, self._here.waiting = phase, False
        if step is not None:
            self._here.step = step
        self._moves += 1

    @contextmanager
    def meeting(self, what: str) -> Iterator[None]:
        """Inside, this rank cannot go on without the others: all of them come to ``what``.

        The process ends here when a rank is missing.
        """
        if self._store is None:
            yield
            return
        here, nested = self._here, self._here.waiting and not self._returns_early
        outer = here.meeting if nested else what
        here.meetings, here.meeting, here.waiting = here.meetings + 1, what, True
        self._moves += 1
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or "gloo" in str(error):
                self._settle()
                self._end(self._charge())
            raise
        finally:
            here.meeting, here.waiting = outer, nested or self._returns_early
            self._moves += 1

    def fail(self, error: str) -> None:
        """Tell the other ranks what this one ends with."""
        if self._store is None:
            return
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the end is near, and has been explained
        self._ending = True
        self._here.error = error.partition("\n")[0]
        self._tell()

    def _listen_for_signals(self) -> None:
        """A signal reaches the guard at once, but the main thread not before it returns from a collective."""
        self._signals, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._on_sigterm = None
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            self._on_sigterm = signal.signal(signal.SIGTERM, self._stopped)

    def _stopped(self, number: int, _frame: types.FrameType | None) -> None:
        """SIGTERM outside the training loop: from a launcher that has lost a rank, or from the user."""
        self._settle()
        if self._gone():
            self._end(self._charge())
        self._end(Verdict(ranks=[], text=f"stopped by SIGTERM ({self._here})"), 128 + number)

    def _exchange(self) -> None:
        """A thread: write where this rank is, read where the others are and whether the run is over."""
        store = self._store
        assert store is not None
        with contextlib.suppress(RuntimeError):  # gone with the rank that holds it, which then looks silent
            while not self._over.wait(self._interval):
                self._here.beat += 1
                asked = self._asked
                if self._own_verdict is not None:
                    store.compare_set(VERDICT, "", json.dumps(asdict(self._own_verdict)))
                store.set(f"position{self._rank}", json.dumps(asdict(self._here)))
                asked.set()
                if store.check([VERDICT]):
                    self._verdict = Verdict(**json.loads(store.get(VERDICT)))
                self._hear(store)

    def _hear(self, store: Store) -> None:
        for other, (known, _) in self._heard.items():
            key = f"position{other}"
            if known.beat or store.check([key]):
                at = Position(**json.loads(store.get(key)))
                if at.beat != known.beat:
                    self._heard[other] = at, self._ticks

    def _guard(self) -> None:
        """A thread: end the process when it has waited too long, or for a rank that is gone."""
        waited, moves = 0, -1
        while not self._over.is_set():
            if select.select([self._signals], [], [], self._interval)[0]:
                self._terminated |= signal.SIGTERM in os.read(self._signals, 64)
                continue
            self._ticks += 1
            waited = waited + 1 if self._moves == moves and self._here.waiting else 0
            moves = self._moves
            if not self._ending and not self._over.is_set():
                self._judge(waited)
        os.close(self._signals)

    def _judge(self, waited: int) -> None:
        """End the process if it is time, after so many ticks in one meeting."""
        gone = self._gone() if self._terminated else self._failed()
        if self._verdict is not None and (waited >= SILENT or self._rank in self._verdict.ranks):
            self._end(self._verdict)
        elif waited >= SILENT and gone:
            self._end(self._charge())
        elif waited * self._interval >= self._seconds:
            self._end(self._charge(f" within {self._seconds:.0f} s"))

    def _failed(self) -> set[int]:
        return {rank for rank, (at, _) in self._heard.items() if at.error}

    def _silent(self) -> set[int]:
        """Who gives no sign of life; if none does, the store is gone, and with it rank 0, which has it."""
        silent = {rank for rank, (_, tick) in self._heard.items() if self._ticks - tick > SILENT}
        return {0} if silent == set(self._heard) and self._rank != 0 else silent

    def _gone(self) -> set[int]:
        return self._failed() | self._silent()

    def _settle(self) -> None:
        """Wait until it shows who is gone. Signals meanwhile are the launcher's, for the same reason."""
        self._ending = True
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for _ in range(SILENT + 2):
            if self._verdict is not None or self._gone():
                return
            time.sleep(self._interval)

    def _charge(self, within: str = "") -> Verdict:
        """Who is missing; what another rank has found goes first."""
        if self._verdict is not None:
            return self._verdict
        positions = {rank: at for rank, (at, _) in self._heard.items()} | {self._rank: replace(self._here)}
        return judged(positions, self._rank, self._silent(), within)

    def _end(self, verdict: Verdict, status: int = 1) -> NoReturn:
        """Tell user and ranks, and end the process: its other threads may hang in a collective."""
        self._ending = True
        if not self._last_word.acquire(blocking=False):
            threading.Event().wait()  # another thread is ending the process
        self._report(verdict.text)
        self._own_verdict = verdict
        self._tell()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def _tell(self) -> None:
        """Let an exchange that begins now write, and the others read where this rank holds the store."""
        self._asked = asked = threading.Event()
        asked.wait(3 * self._interval)
        if self._rank == 0:
            time.sleep(2 * self._interval)


WATCH = Watch()
"""The one of this process, as ``torch.distributed`` has one process group."""
