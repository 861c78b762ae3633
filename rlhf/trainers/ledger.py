"""The log-prob ledger: the first update must see the log-probs that the rollout was scored with (D15)."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.batch import Experience
from rlhf.distributed.collectives import all_max, all_sum, gather_objects
from rlhf.metrics import Metrics
from rlhf.trainers.faults import Row

ROUNDING = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (0.1, 1.0)}
"""Largest mean and largest single |Δ log π| that rounding explains, by the dtype of the actor's weights.

Two forwards that group the rows differently round differently, and log π moves by at most twice the largest
change of a logit. float32, with unit roundoff 2⁻²⁴, logits of up to 64 and some 64 roundings on the way to
each: 2·2·64·64·2⁻²⁴ = 1e-3. bfloat16: a logit in [32, 64) is rounded to a multiple of ¼, so by at most ⅛ in
either forward, which makes ½; as much again for all that comes before it. The mean is a tenth of that.
Measured on random models of six layers with logits up to 50: 1.3e-6 and 3.2e-5; 0.017 and 0.47.
"""


class Ledger:
    """|log π of the first update − old log π|, over the micro-batches of the first minibatch of a rollout."""

    def __init__(self) -> None:
        self._total, self._count = 0.0, 0
        self._worst, self._where = 0.0, ""

    def add(self, logprobs: Tensor, part: Experience, row: Row) -> None:
        """Compare one micro-batch; what is not finite is for `Faults` to report.

        Args:
            logprobs: (b, T) of the update, before any parameter has moved.
            part: the rows that they belong to.
            row: names a row.
        """
        mask = part.rollout.mask
        gap = torch.where(mask, (logprobs - part.old_logprobs).abs(), 0.0).nan_to_num(0.0, 0.0, 0.0)  # (b, T)
        self._total += float(gap.double().sum())
        self._count += int(mask.sum())
        if float(gap.max()) > self._worst:
            self._worst = float(gap.max())
            first, token = divmod(int(gap.argmax()), gap.shape[1])
            self._where = f"token {token} of {row(first)}"

    def close(self, metrics: Metrics, dtype: torch.dtype, place: str) -> None:
        """Report the gap and insist that the ratio is 1. Every rank calls it, before the first step.

        Args:
            metrics: receives ``ledger/update_gap_mean`` and ``ledger/update_gap_max``.
            dtype: of the actor's weights.
            place: names the step.

        Raises:
            FloatingPointError: the gap is more than rounding; names the token where it is largest.
        """
        metrics.add("ledger/update_gap_mean", self._total, self._count)
        metrics.maximum("ledger/update_gap_max", self._worst)
        total, count = all_sum(torch.tensor([self._total, self._count], dtype=torch.float64)).tolist()
        worst = float(all_max(torch.tensor(self._worst, dtype=torch.float64)))
        mean, bounds = total / max(count, 1), ROUNDING.get(dtype, ROUNDING[torch.float32])
        if mean <= bounds[0] and worst <= bounds[1]:
            return
        where = max(gather_objects((self._worst, self._where)))[1]
        raise FloatingPointError(
            f"{place}: the first update's log-probs are not those that the rollout was scored with: they are "
            f"{mean:.2g} apart on average and {worst:.2g} at {where}; at most {bounds[0]:g} "
            f"and {bounds[1]:g} are rounding"
        )
