"""How (tokens × vocabulary) is cut, by device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rlhf.kernels.workspace import spans, wide

CPU_TILE = 1 << 20
"""Logits of a CPU's tile: 4 MiB in float32, near the caches, and large enough for a full-speed product."""
CPU_BLOCK = 1 << 22
"""Gradients of logits that a CPU holds at once, in the weight's dtype: each further block passes over dX."""
CPU_ROWS = 4096
"""Rows of a CPU's tile at most."""
GPU_TILE = 1 << 28
"""Logits of a GPU's tile: 1 GiB in float32."""
GPU_ROWS = 65536
"""Rows of a GPU's backward tile at most, so that it is at least 4096 columns wide."""
CPU_SWEEP_BYTES = 32 << 20
"""Logits of all columns that a sweep holds on a CPU: memory beyond the caches costs page faults."""
CPU_SWEEP_ROWS = 160
"""Or that many rows, if they are more: each further chunk of rows passes over dW once more."""


def measuring_tiles(rows: int, columns: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Tiles of the forward: whole rows on a GPU, where one launch then does a row; column blocks on a CPU."""
    if device.type == "cuda":
        width, height = columns, max(GPU_TILE // columns, 1)
    else:
        height = min(rows, CPU_ROWS)
        width = max(CPU_TILE // max(height, 1), 1)
    return ((r, c) for r in spans(rows, height) for c in spans(columns, width))


def column_blocks(
    rows: int, columns: int, device: torch.device, *, fused: bool = False
) -> tuple[Iterator[slice], int]:
    """The backward's blocks of columns, whose dW is written once, and the rows of a tile inside one.

    ``fused``: gradients are made with their products, so that no tile of logits need stay near the caches.
    """
    on_gpu = device.type == "cuda"
    height = max(min(rows, GPU_ROWS if on_gpu else CPU_ROWS), 1)
    width = max((GPU_TILE if on_gpu else CPU_BLOCK if fused else CPU_TILE) // height, 1)
    return spans(columns, width), height


def sweep_rows(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    """Chunks of rows whose logits of all columns are held at once.

    All, where that takes no more room than the sum of dW over several chunks would need beside dW.
    """
    (rows, width), columns = hidden.shape, weight.shape[0]
    itemsize = wide(weight.dtype).itemsize
    held = GPU_TILE if weight.is_cuda else max(CPU_SWEEP_BYTES // itemsize, CPU_SWEEP_ROWS * columns)
    if weight.dtype.itemsize < itemsize and rows <= width and not weight.is_cuda:
        held = rows * columns
    return spans(rows, max(held // columns, 1))


def compared_rows(rows: int, columns: int, device: torch.device) -> Iterator[slice]:
    """Chunks of rows whose logits of all columns, of two heads and eight-fold in all, are held at once."""
    held = GPU_TILE // 4 if device.type == "cuda" else max(CPU_TILE, CPU_SWEEP_ROWS * columns)
    return spans(rows, max(held // columns, 1))


def sweep_columns(rows: int, columns: int, device: torch.device) -> Iterator[slice]:
    """Blocks of columns inside a chunk of ``rows`` rows."""
    return spans(columns, columns if device.type == "cuda" else max(CPU_TILE // max(rows, 1), 1))


def row_blocks(rows: int, columns: int, device: torch.device) -> Iterator[slice]:
    """Blocks of whole rows of given logits."""
    return spans(rows, rows if device.type == "cuda" else max(CPU_TILE // columns, 1))
