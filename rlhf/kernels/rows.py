"""What the row kernels are given and what they keep, and which of them a device gets.

Three back ends have the same two functions: :mod:`rlhf.kernels.torch_rows`, :mod:`rlhf.kernels.cpu_head` and
:mod:`rlhf.kernels.triton_rows`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rlhf.kernels.workspace import Workspace


@dataclass(kw_only=True, slots=True)
class Reading:
    """How products a = hidden·weightᵀ are read: z = cap·tanh(scale·(a + b)/cap)/T, and the targets."""

    targets: Tensor
    """(M,) int64."""
    cooling: Tensor | float
    """1/T: a number, or (M,) one a row, in the wide dtype."""
    scale: float
    softcap: float | None
    """None: no tanh."""

    def rows(self, rows: slice | Tensor) -> Reading:
        """Of some rows."""
        cooling = self.cooling[rows] if isinstance(self.cooling, Tensor) else self.cooling
        return Reading(targets=self.targets[rows], cooling=cooling, scale=self.scale, softcap=self.softcap)


@dataclass(kw_only=True, slots=True)
class Statistics:
    """Running sums over the columns of each row.

    They are relative to the largest logit so far, so that log-probs are never positive, entropies never
    negative, and logits of −1000 lose nothing.
    """

    peak: Tensor
    """(m,) max z."""
    total: Tensor
    """(m,) Σ exp(z − peak), at least 1 once a column was seen."""
    weighted: Tensor
    """(m,) Σ exp(z − peak)·(z − peak); left at 0 where no entropy is wanted."""
    target: Tensor
    """(m,) z of the target; NaN until its column was seen, and for ever if there is no such column."""

    @staticmethod
    def start(rows: int, dtype: torch.dtype, device: torch.device) -> Statistics:
        """Before the first column."""
        peak = torch.full((rows,), torch.finfo(dtype).min, dtype=dtype, device=device)  # −inf·0 would be NaN
        target = torch.full_like(peak, torch.nan)
        return Statistics(
            peak=peak, total=torch.zeros_like(peak), weighted=torch.zeros_like(peak), target=target
        )

    def rows(self, rows: slice | Tensor) -> Statistics:
        """Of some rows; of a slice a view, which updates reach."""
        return Statistics(
            peak=self.peak[rows],
            total=self.total[rows],
            weighted=self.weighted[rows],
            target=self.target[rows],
        )

    @property
    def logprobs(self) -> Tensor:
        """(m,) log-prob of each target: both terms from the same logits (numerics D11)."""
        return (self.target - self.peak) - self.total.log()

    @property
    def mean(self) -> Tensor:
        """(m,) E[z] − peak."""
        return self.weighted / self.total

    @property
    def entropies(self) -> Tensor:
        """(m,) logsumexp(z) − E[z]."""
        return self.total.log() - self.mean


@dataclass(kw_only=True, slots=True)
class Upstream:
    """d loss / d log-prob and d loss / d entropy of each row."""

    logprobs: Tensor | None
    """(m,); None is zero."""
    entropies: Tensor | None
    """(m,); None is zero."""

    def contiguous(self) -> Upstream:
        """One number a row in memory, where a sum's gradient is one number seen M times."""
        return Upstream(
            logprobs=None if self.logprobs is None else self.logprobs.contiguous(),
            entropies=None if self.entropies is None else self.entropies.contiguous(),
        )

    def rows(self, rows: slice | Tensor) -> Upstream:
        """Of some rows."""
        return Upstream(
            logprobs=None if self.logprobs is None else self.logprobs[rows],
            entropies=None if self.entropies is None else self.entropies[rows],
        )


@dataclass(kw_only=True, slots=True)
class Tile:
    """Some columns of some rows."""

    products: Tensor
    """(m, n) in the wide dtype."""
    first: int
    """Place of its first column in the vocabulary."""
    bias: Tensor | None
    """(n,) in the wide dtype."""
    reading: Reading
    """Of its rows."""
    statistics: Statistics
    """Of its rows, a view."""
    lost: Tensor | None = None
    """(m,) float64, a view: takes the sums of the gradients, less those of the gradients once rounded.

    Without a cap the former are 0; float32 gradients are not rounded. See `Projection.mean_row`.
    """


class RowKernels(Protocol):
    """The two functions of a back end."""

    def add_statistics(self, tile: Tile, workspace: Workspace, *, entropy: bool) -> None:
        """Take the columns of a tile into the statistics of its rows; the products stay as they are."""

    def gradients(self, tile: Tile, upstream: Upstream, out: Tensor, workspace: Workspace) -> None:
        """d loss / d products into ``out`` (m, n), or into the products themselves; they are lost anyway.

        ∂/∂z_j = g·(1[j = y] − p_j) − h·p_j·(z_j − E[z]), times ∂z/∂a.
        """


def nonzero_rows(upstream: Upstream, like: Tensor) -> Tensor:
    """Indices of the rows, as many as ``like``, that have an upstream gradient; counting them is a sync."""
    active = torch.zeros_like(like, dtype=torch.bool)
    for gradient in (upstream.logprobs, upstream.entropies):
        if gradient is not None:
            active |= gradient != 0
    return active.nonzero().squeeze(1)


def row_kernels(device: torch.device, dtype: torch.dtype) -> RowKernels:
    """Triton's on a GPU (torch's CUDA build brings it); elsewhere C++ for what it has, else torch's."""
    if device.type == "cuda":
        from rlhf.kernels import triton_rows

        return triton_rows
    from rlhf.kernels import cpu_head, torch_rows

    return cpu_head if cpu_head.has_rows(dtype) else torch_rows
