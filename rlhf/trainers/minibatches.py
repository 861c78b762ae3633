"""The optimiser steps of a rollout: which rows make each of them, in which epoch (numerics D41)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from rlhf.batch import Experience, concatenate
from rlhf.distributed.collectives import gather_objects
from rlhf.distributed.runtime import Runtime
from rlhf.seeding import generator
from rlhf.trainers.micro_batches import dealt, exact_div


@dataclass(kw_only=True, slots=True)
class Minibatches:
    """Equal parts of a rollout, in a fresh order each epoch, which the number of ranks does not change."""

    epochs: int
    count: int
    """Minibatches of an epoch."""
    seed: int
    runtime: Runtime

    def __call__(self, own: Experience, rollout: int) -> Iterator[Experience]:
        """This rank's rows of each; every rank calls it.

        The rows of a minibatch stand in the order of the rollout: where it is the whole rollout, its
        micro-batches are those that were scored, and the first ratio is exactly 1 (numerics D15). Where
        there are several, rows go to the ranks anew in each.

        Args:
            own: this rank's rows, as wide as those of the others.
            rollout: number of the rollout.
        """
        moves = self.count > 1 and self.runtime.world_size > 1
        every = _of_all_ranks(own) if moves else own
        size = exact_div(len(every), self.count, "rows", "minibatches")
        lengths = every.rollout.attention_mask.sum(1)
        for epoch in range(self.epochs):
            stream = generator(self.seed, "minibatches", rollout, epoch, 0)  # rank 0's, on every rank
            for drawn in torch.randperm(len(every), generator=stream).split(size):
                rows = drawn.sort().values
                if moves:
                    sizes = lengths[rows].tolist()
                    yield every.rows(rows[self._share(sizes)]).to(self.runtime.device)
                else:
                    yield every.rows(rows)

    def _share(self, sizes: list[int]) -> list[int]:
        return dealt(sizes, self.runtime.rank, self.runtime.world_size)


def _of_all_ranks(own: Experience) -> Experience:
    """All rows in the order in which their prompts were drawn, on the CPU."""
    every = concatenate(gather_objects(own.to(torch.device("cpu"))))
    return every.rows(every.rollout.group.argsort(stable=True))
