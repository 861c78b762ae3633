"""The frozen testbed (numerics section 2) and ranks as threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.testbed.tree import Testbed


def _across_ranks(work: Callable[[int, Callable[[Tensor], Tensor]], Any], ranks: int) -> list[Any]:
    """``work(rank, total)`` on every rank at once; ``total`` really sums over them."""
    barrier, parts = threading.Barrier(ranks, timeout=10), [torch.empty(0)] * ranks

    def run(rank: int) -> Any:
        def total(part: Tensor) -> Tensor:
            parts[rank] = part
            barrier.wait()
            summed = torch.stack(parts).sum(0)
            barrier.wait()
            return summed

        return work(rank, total)

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(run, range(ranks)))


@pytest.fixture
def across_ranks() -> Callable[..., list[Any]]:
    return _across_ranks


@pytest.fixture
def one_rank() -> Callable[[Tensor], Tensor]:
    return lambda part: part


@pytest.fixture(scope="session")
def testbed() -> Testbed:
    return Testbed()
