"""What every case is given: device, sizes, patience, and the peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from benchmarks.peers.client import PeerEnvironment
from benchmarks.results import Line

T = TypeVar("T")


@dataclass(kw_only=True, slots=True)
class Bench:
    """One run of the suite."""

    device: torch.device
    quick: bool
    """Tiny shapes, two rounds: shows that a case runs, and measures nothing."""
    budget: float
    """Seconds of timing a cell, after which no further round begins."""
    rounds: int
    """At most."""
    least: int
    """At least, whatever they take."""
    warm_ups: int
    peers: PeerEnvironment

    def size(self, full: T, quick: T) -> T:
        """The full size, or the tiny one."""
        return quick if self.quick else full


@dataclass(kw_only=True, slots=True)
class Case:
    """A numbered benchmark."""

    title: str
    run: Callable[[Bench], Iterator[Line]]
    """Yields lines as they are known."""


Shapes = Sequence[tuple[int, int, int]]


def dtype_name(dtype: torch.dtype) -> str:
    """fp32, bf16."""
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


def cell_name(shape: tuple[int, int, int], dtype: torch.dtype) -> str:
    """Tokens × hidden × vocabulary and dtype."""
    return f"{'×'.join(str(size) for size in shape)} {dtype_name(dtype)}"
