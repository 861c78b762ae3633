"""Collectives are counted once, with their bytes and the time that is waited for them."""

import time
from typing import Any

import torch

from benchmarks.ranks.communication import Meter


class Work:
    def wait(self) -> bool:
        time.sleep(0.02)
        return True

    def is_completed(self) -> bool:
        return False


def slow(tensor: Any, *, output: Any = None) -> None:
    time.sleep(0.02)


def test_bytes_are_those_of_the_largest_argument() -> None:
    meter = Meter()
    meter.timed(slow)(torch.zeros(10), output=torch.zeros(20))
    assert meter.bytes == 80
    meter.timed(slow)([torch.zeros(3, dtype=torch.float64)] * 2)
    assert meter.bytes == 80 + 48
    meter.timed(slow)("barrier")
    assert meter.bytes == 80 + 48
    assert 0.06 <= meter.seconds < 0.5


def test_a_collective_inside_another_is_not_counted_again() -> None:
    meter = Meter()
    inner = meter.timed(slow)
    meter.timed(inner)(torch.zeros(10))
    assert meter.bytes == 40
    assert 0.02 <= meter.seconds < 0.04


def test_waiting_for_one_that_runs_beside_the_computation_is_counted() -> None:
    meter = Meter()
    work = meter.timed(lambda tensor: Work())(torch.zeros(10))
    assert meter.seconds < 0.01
    assert work.wait() is True
    assert 0.02 <= meter.seconds < 0.2
    assert work.is_completed() is False
