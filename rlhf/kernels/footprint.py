"""What the head holds beside its inputs and gradients, from the tiles that its kernels go by.

Where a CPU has no compiled products torch holds a few tiles more, of `rlhf.kernels.tiles.CPU_TILE` each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rlhf.kernels.cpu_products import NARROW, multiplies
from rlhf.kernels.tiles import (
    CPU_BLOCK,
    CPU_ROWS,
    CPU_SWEEP_BYTES,
    CPU_SWEEP_ROWS,
    CPU_TILE,
    GPU_ROWS,
    GPU_TILE,
)
from rlhf.kernels.workspace import wide


@dataclass(kw_only=True, slots=True)
class HeadSizes:
    """M rows, V columns, width H of a head on a kind of device."""

    rows: int
    columns: int
    width: int
    dtype: torch.dtype
    on_gpu: bool = False

    @property
    def fused(self) -> bool:
        """Whether products are made and used up in C++ (`rlhf.kernels.cpu_head.has_head`)."""
        return not self.on_gpu and self.dtype in NARROW and multiplies(NARROW[self.dtype])

    @property
    def _narrow(self) -> int:
        """Bytes of a gradient of a logit in the weight's dtype, beside its product; else 0."""
        return self.dtype.itemsize if self.dtype != wide(self.dtype) else 0

    def measuring(self) -> int:
        """Bytes of the tile of products that log-probs are made of; 0 where it never exists."""
        if self.fused:
            return 0
        tile = max(GPU_TILE // self.columns, 1) * self.columns if self.on_gpu else CPU_TILE
        return min(tile, self.rows * self.columns) * wide(self.dtype).itemsize

    def differentiating(self) -> int:
        """Bytes of the backward's tile, and of the wide sum of a block of dW over several tiles of rows."""
        most = GPU_TILE if self.on_gpu else CPU_BLOCK if self.fused else CPU_TILE
        height = max(min(self.rows, GPU_ROWS if self.on_gpu else CPU_ROWS), 1)
        parts = -(-self.rows // height)
        blocks = -(-self.columns // max(most // height, 1))
        rows, columns = -(-self.rows // max(parts, 1)), -(-self.columns // blocks)
        logit = self.dtype.itemsize if self.fused else wide(self.dtype).itemsize + self._narrow
        several = columns * self.width * wide(self.dtype).itemsize if parts > 1 else 0
        grows = self.columns % blocks or self.rows % max(parts, 1)  # a larger buffer beside the last one
        return (rows * columns * logit + several) * (2 if grows else 1)

    def sweeping(self) -> int:
        """Bytes of a chunk of rows of the one-sweep head (`rlhf.kernels.linear_token_loss`)."""
        if self.fused:
            return self.differentiating()
        rows = self.sweep_rows
        block = self.columns if self.on_gpu else min(max(CPU_TILE // rows, 1), self.columns)
        chunk = self.columns * wide(self.dtype).itemsize + block * self._narrow
        return rows * (chunk + self.width * wide(self.dtype).itemsize)

    @property
    def sweep_rows(self) -> int:
        """Rows of a chunk; see `rlhf.kernels.tiles.sweep_rows`."""
        itemsize = wide(self.dtype).itemsize
        held = GPU_TILE if self.on_gpu else max(CPU_SWEEP_BYTES // itemsize, CPU_SWEEP_ROWS * self.columns)
        if self._narrow and self.rows <= self.width and not self.on_gpu:
            held = self.rows * self.columns
        count = -(-self.rows // max(held // self.columns, 1))
        return -(-self.rows // max(count, 1))

    @property
    def swept_weight(self) -> torch.dtype:
        """That of the sum that becomes dW: wide where several chunks of rows are added up."""
        once = self.fused or self.sweep_rows >= self.rows
        return self.dtype if once else wide(self.dtype)
