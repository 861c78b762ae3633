"""Scores of reference demonstrations brought to mean 0, and to unit variance if wanted (numerics D25)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf.data.loaded import SupervisedSet
from rlhf.distributed.collectives import all_sum
from rlhf.distributed.runtime import Runtime
from rlhf.distributed.watch import WATCH
from rlhf.models.readouts import Readout
from rlhf.models.score_shift import ScoreScale
from rlhf.trainers.micro_batches import Cut, held_out


@dataclass(kw_only=True, slots=True)
class Normalisation:
    """score = gain·(raw − mean)."""

    mean: float
    """Of the raw scores of the demonstrations."""
    std: float
    """Theirs, of the population."""
    count: int
    """Demonstrations."""
    gain: float
    """1, or 1/std."""

    @classmethod
    def of(cls, sums: Tensor, *, unit_std: bool) -> Normalisation:
        """From (Σx, Σx², n) in float64.

        Raises:
            ValueError: there are none, they are not finite, or all equal where their deviation is to be 1.
        """
        total, squares, count = sums.tolist()
        if not count:
            raise ValueError("normalise.data: no row is left to measure the scores of")
        mean = total / count
        if not math.isfinite(squares):
            raise ValueError(
                f"the scores of the reference demonstrations must be finite, their mean is {mean}"
            )
        std = math.sqrt(max(squares / count - mean**2, 0.0))
        if unit_std and std <= 1e-6 * max(abs(mean), 1.0):
            raise ValueError(
                f"normalise.unit_std needs reference demonstrations with different scores, all {int(count)} "
                f"have {mean:.6g}"
            )
        return cls(mean=mean, std=std, count=int(count), gain=1 / std if unit_std else 1.0)

    def scale(self, shift: float) -> ScoreScale:
        """What scores are to be changed to, that have the constant ``shift`` in them."""
        return ScoreScale(gain=self.gain, shift=(shift - self.mean) * self.gain)


@torch.no_grad()
def score_sums(
    model: Callable[[Tensor, Tensor], Any], rows: SupervisedSet, readout: Readout, cut: Cut, runtime: Runtime
) -> Tensor:
    """(3,) float64 Σx, Σx² and n of all rows' scores, over all ranks; each calls it (numerics D37)."""
    WATCH.enter("normalisation")
    sums = torch.zeros(3, dtype=torch.float64)
    for index, real in held_out(len(rows), cut.rows, runtime.rank, runtime.world_size):
        batch = rows.batch(index).to(runtime.device)
        for part in cut(batch.lengths):
            scores = readout.scores(model, batch.rows(part).trimmed()).cpu().double()[real[part]]
            sums += torch.stack([scores.sum(), scores.square().sum(), torch.tensor(float(len(scores)))])
    return all_sum(sums)
