"""The head as the kernels see it: hidden states and weight, cut into tiles of products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.kernels.rows import Reading, RowKernels, Statistics, Tile, row_kernels
from rlhf.kernels.workspace import Workspace, wide

SAMPLE = 128
"""Rows of the weight whose mean stands for that of all."""


@dataclass(kw_only=True, slots=True)
class Projection:
    """hidden·weightᵀ + bias, and how it is read."""

    hidden: Tensor
    """(M, H)."""
    weight: Tensor
    """(V, H), of the same dtype."""
    bias: Tensor | None
    """(V,)."""
    reading: Reading

    @property
    def shape(self) -> tuple[int, int]:
        """(M, V)."""
        return self.hidden.shape[0], self.weight.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """That of every sum and result."""
        return wide(self.hidden.dtype)

    @property
    def device(self) -> torch.device:
        """Where all of it is."""
        return self.hidden.device

    @property
    def kernels(self) -> RowKernels:
        """Those of the device and dtype."""
        return row_kernels(self.device, self.hidden.dtype)

    def take(self, rows: Tensor) -> Projection:
        """Some of the rows, copied together."""
        hidden = self.hidden.index_select(0, rows)
        return Projection(hidden=hidden, weight=self.weight, bias=self.bias, reading=self.reading.rows(rows))

    def products(self, rows: slice, columns: slice, workspace: Workspace) -> Tensor:
        """(m, n) hidden·weightᵀ in the wide dtype, in the workspace."""
        return workspace.product("products", self.hidden[rows], self.weight[columns].t())

    def block_bias(self, columns: slice) -> Tensor | None:
        """(n,) of these columns in the wide dtype."""
        return None if self.bias is None else self.bias[columns].to(self.dtype)

    def mean_row(self) -> Tensor | None:
        """(H,) of the weight, in the wide dtype; None for float64 and on a GPU, where nothing is restored.

        A row's gradients sum to nothing, but not once rounded, nor does a long sum of products: where all
        rows of the weight have much in common, as when all logits are near −1000, that drowns the rest. So
        float32 products take the mean row away first, and 16-bit ones get what rounding lost along it back.
        """
        if self.dtype == torch.float64 or self.weight.is_cuda or 0 in self.weight.shape:
            return None
        return self._sample().mean(0, dtype=self.dtype)

    def _sample(self) -> Tensor:
        return self.weight[:: max(len(self.weight) // SAMPLE, 1)]

    def common_row(self) -> Tensor | None:
        """(H,) what the compiled head takes from every row of a float32 weight before its products.

        That moves all logits of a row of hidden states by one number, which no log-prob sees; and logits near
        −1000 are rounded a thousand times as coarsely as those near 1. None where a cap would see it, or
        where the rows have less in common than sets them apart.
        """
        if self.reading.softcap is not None or self.weight.dtype != torch.float32:
            return None
        sample = self._sample()
        common = sample.mean(0)
        shared, whole = common.square().sum(), torch.linalg.vector_norm(sample).square() / len(sample)
        return common if shared > whole - shared else None

    def centre(self, mean_row: Tensor | None) -> Tensor | None:
        """What products with the weight take away first."""
        return mean_row if self.weight.dtype == self.dtype else None

    def room_for_lost(self) -> Tensor:
        """(M,) for :attr:`Tile.lost`."""
        return self.hidden.new_zeros(len(self.hidden), dtype=torch.float64)

    def tile(
        self,
        products: Tensor,
        rows: slice,
        columns: slice,
        statistics: Statistics,
        lost: Tensor | None = None,
    ) -> Tile:
        """The tile of these products."""
        return Tile(
            products=products,
            first=columns.start,
            bias=self.block_bias(columns),
            reading=self.reading.rows(rows),
            statistics=statistics.rows(rows),
            lost=None if lost is None else lost[rows],
        )


@dataclass(slots=True)
class Gradients:
    """What a backward adds up; None for what nobody asked for."""

    hidden: Tensor | None
    """(M, H) in the wide dtype."""
    weight: Tensor | None
    """(V, H) in the wide dtype, or in that of the weight where each element is written once."""
    bias: Tensor | None
    """(V,) in the wide dtype."""

    def handed_out(self, upstream: Tensor, dtype: torch.dtype) -> list[Tensor | None]:
        """Of hidden states, weight and bias, times the loss's upstream scalar, in place; once."""
        parts = [self.hidden, self.weight, self.bias]
        if upstream.is_cuda or upstream != 1.0:  # a pass over dW; a GPU is not asked for the number
            for part in parts:
                if part is not None:
                    part.mul_(upstream)
        return [None if part is None else part.to(dtype) for part in parts]


def empty_gradients(projection: Projection, wanted: tuple[bool, bool, bool]) -> Gradients:
    """Zeros in the wide dtype for hidden states, weight and bias, as ``wanted``."""
    new, dtype = projection.hidden.new_zeros, projection.dtype
    shapes = (projection.hidden.shape, projection.weight.shape, projection.weight.shape[:1])
    return Gradients(
        *(new(shape, dtype=dtype) if want else None for shape, want in zip(shapes, wanted, strict=True))
    )


def restore(d_hidden: Tensor, lost: Tensor, mean_row: Tensor | None) -> None:
    """Add to ``d_hidden`` (M, H) what is due along the mean row of the weight: see `Projection.mean_row`."""
    if mean_row is not None:
        d_hidden.addr_(lost.to(d_hidden.dtype), mean_row)
