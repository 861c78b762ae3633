"""Steps of decoding that a GPU has captured: one launch in place of a thousand.

Each is recorded once a run, for a number of rows and of columns, and replayed in every rollout: weights
change in place, and everything else that a step reads stands in a `StaticBatch`. Without a GPU the same step
runs eagerly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch

from rlhf.models.actor import Actor
from rlhf.rollout.decoding import Decoding
from rlhf.rollout.static_batch import StaticBatch

WARM_UPS = 2
"""Runs before a capture, in which libraries choose kernels and take their workspaces."""
GRAIN = 64
"""Room is made for a multiple of so many columns: a slightly longer prompt later finds its place."""


class Captured:
    """Work on static tensors as a CUDA graph."""

    def __init__(self, work: Callable[[], None], *, pool: Any, stream: torch.cuda.Stream) -> None:
        """Record what ``work`` launches; it is not run.

        Args:
            work: run before on ``stream``; all that outlives it is written to tensors made before.
            pool: of `torch.cuda.graph_pool_handle`: graphs that never run at the same time share the memory
                of what is between their inputs and outputs.
            stream: on which it is recorded.
        """
        self._graph = torch.cuda.CUDAGraph()
        # Other threads, which watch the ranks, may speak to the device meanwhile.
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            work()

    def __call__(self) -> None:
        """Run it on the present stream."""
        self._graph.replay()


@dataclass(kw_only=True, slots=True)
class _Policy:
    """What is kept for an actor; it does not hold the actor, which may go before the run ends."""

    addresses: tuple[int, ...]
    batch: StaticBatch
    pool: Any
    stream: torch.cuda.Stream | None
    steps: dict[tuple[str, int, int], Captured | None] = field(default_factory=dict)
    """By decoding, rows and columns; None for one that runs eagerly."""


class Graphs:
    """The static batch and the captured steps of each actor."""

    def __init__(self) -> None:
        self._policies: WeakKeyDictionary[Actor, _Policy] = WeakKeyDictionary()
        self.captures = 0
        """Steps that were captured so far (where there is no GPU, those that would have been)."""

    def columns(self, actor: Actor, needed: int) -> int:
        """Columns that a row gets: a multiple of `GRAIN`, no more than positions, no fewer than it has."""
        columns, known = -(-needed // GRAIN) * GRAIN, self._policies.get(actor)
        if actor.context is not None:
            columns = max(min(columns, actor.context), needed)
        return columns if known is None else max(columns, known.batch.cache.columns)

    def batch(
        self, actor: Actor, *, rows: int, columns: int, length: int, most: int | None = None
    ) -> StaticBatch:
        """The actor's batch, with room for so many rows, columns, and tokens of a response.

        Where the one that is there has too little room, or the weights are no longer where they were, it
        goes, with what was captured. Another is made, with room for what went too: ``most`` rows at most.
        """
        known, addresses = self._policies.pop(actor, None), _addresses(actor)
        if known is None or known.addresses != addresses or not known.batch.holds(rows, columns, length):
            if known is not None:
                rows, length = (
                    max(pair) for pair in zip((rows, length), known.batch.noise.shape, strict=True)
                )
            known = None  # its memory is free before more is taken
            known = _policy(actor, rows if most is None else min(rows, most), columns, length, addresses)
        self._policies[actor] = known
        return known.batch

    def step(self, actor: Actor, decoding: Decoding, rows: int, reach: int) -> Callable[[], None]:
        """`StaticBatch.step` of the actor's batch, captured where it was not yet."""
        policy, key = self._policies[actor], (repr(decoding), rows, reach)
        work = partial(policy.batch.step, actor, decoding, rows, reach)
        if key not in policy.steps:
            self.captures += 1
            policy.steps[key] = None if policy.stream is None else _captured(policy, work)
        return policy.steps[key] or work


def _addresses(actor: Actor) -> tuple[int, ...]:
    """Where weights and buffers stand."""
    return tuple(tensor.data_ptr() for tensor in (*actor.parameters(), *actor.buffers()))


def _policy(actor: Actor, rows: int, columns: int, length: int, addresses: tuple[int, ...]) -> _Policy:
    device = next(actor.parameters()).device
    cuda = device.type == "cuda"
    return _Policy(
        addresses=addresses,
        batch=StaticBatch.of(actor, rows=rows, columns=columns, length=length),
        pool=torch.cuda.graph_pool_handle() if cuda else None,
        stream=torch.cuda.Stream(device) if cuda else None,
    )


def _captured(policy: _Policy, work: Callable[[], None]) -> Captured:
    """Warm up while no row is alive, which changes nothing but the time, and capture."""
    assert policy.stream is not None
    batch, own = policy.batch, torch.cuda.current_stream()
    alive, time = batch.alive.clone(), batch.time.clone()
    batch.alive.zero_()
    policy.stream.wait_stream(own)
    with torch.cuda.stream(policy.stream):
        for _ in range(WARM_UPS):
            batch.time.copy_(time)
            work()
    own.wait_stream(policy.stream)
    captured = Captured(work, pool=policy.pool, stream=policy.stream)
    batch.alive.copy_(alive)
    batch.time.copy_(time)
    return captured
