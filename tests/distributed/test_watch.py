"""What a rank says with its last breath reaches the others."""

from __future__ import annotations

import json
import os
import threading
from datetime import timedelta

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from rlhf.distributed.watch import VERDICT, Verdict, Watch


class SlowStore(HashStore):
    """A network in which a write takes as long as the test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.arrives = threading.Event(), threading.Event()

    def set(self, key: str, value: str) -> None:
        self.begun.set()
        assert self.arrives.wait(20)
        super().set(key, value)


class EndedError(Exception):
    """In place of the end of the process."""


@pytest.fixture
def store() -> SlowStore:
    return SlowStore()


@pytest.fixture
def watch(store: SlowStore, monkeypatch: pytest.MonkeyPatch) -> Watch:
    def ends(status: int) -> None:
        raise EndedError(status)

    monkeypatch.setattr(os, "_exit", ends)
    monkeypatch.setattr(Watch, "_listen_for_signals", lambda self: setattr(self, "_signals", os.pipe()[0]))
    watch = Watch()
    watch.start(
        store, rank=1, ranks=2, timeout=timedelta(seconds=2), returns_early=False, report=lambda line: None
    )
    return watch


def test_a_verdict_is_written_though_an_exchange_had_begun_before_it(watch: Watch, store: SlowStore) -> None:
    verdict = Verdict(ranks=[0], text="rank 0 hangs")
    assert store.begun.wait(20)  # this exchange knows of no verdict
    threading.Timer(0.1, store.arrives.set).start()
    with pytest.raises(EndedError):
        watch._end(verdict)
    watch._over.set()
    assert store.check([VERDICT])
    assert json.loads(store.get(VERDICT)) == {"ranks": [0], "text": "rank 0 hangs"}
