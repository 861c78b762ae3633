"""PPO-ptx: texts whose likelihood is kept up while the policy learns (Ouyang et al. 2022, appendix C.4)."""

from __future__ import annotations

from torch import Tensor

from rlhf.algorithms.aggregation import TokenMean
from rlhf.data.loaded import SupervisedSet
from rlhf.data.order import batch_indices
from rlhf.distributed.collectives import all_sum
from rlhf.distributed.engine import Engine
from rlhf.distributed.runtime import Runtime
from rlhf.metrics import Metrics
from rlhf.trainers.faults import Faults, numbered
from rlhf.trainers.micro_batches import Cut, dealt, exact_div
from rlhf.trainers.supervised import descend


class Pretraining:
    """Adds γ·∇E[−log π] of the next texts to the gradient of an optimiser step (numerics D45)."""

    def __init__(
        self, *, rows: SupervisedSet, batch_size: int, cut: Cut, seed: int, runtime: Runtime
    ) -> None:
        """Take the texts.

        Args:
            rows: encoded texts and which of their tokens count.
            batch_size: texts of one optimiser step, over all ranks.
            cut: which texts share a forward pass.
            seed: of their order.
            runtime: this rank among the others.

        Raises:
            ValueError: the ranks would get unequal numbers of texts.
        """
        exact_div(batch_size, runtime.world_size, "pretraining.batch_size", "ranks")
        self._rows, self._batch_size, self._cut = rows, batch_size, cut
        self._seed, self._runtime = seed, runtime

    def backward(self, engine: Engine, coef: float, step: int, metrics: Metrics, faults: Faults) -> None:
        """Add the gradient of coef·(mean of −log π over all target tokens of this step's texts).

        Args:
            engine: around the actor.
            coef: γ, in advantages per nat.
            step: optimiser steps before this one; says which texts are next.
            metrics: receives ``actor/ptx_loss``.
            faults: receives what is not finite.
        """
        index = self._index(step)
        batch = self._rows.batch(index).to(self._runtime.device)
        weights = coef * TokenMean()(batch.mask, all_sum)  # (B, L)
        for rows in self._cut(batch.lengths):
            part = batch.rows(rows).trimmed()
            named = numbered(index[rows], "pretraining row")
            loss = descend(engine, part, weights[rows], faults, "pretraining loss", named)
            metrics.mean("actor/ptx_loss", loss, part.mask)

    def _index(self, step: int) -> Tensor:
        first, ranks = step * self._batch_size, self._runtime.world_size
        index = batch_indices(first, self._batch_size, len(self._rows), self._seed)
        return index[dealt(self._rows.sizes(index), self._runtime.rank, ranks)]
