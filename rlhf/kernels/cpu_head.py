"""The head and the row kernels of a CPU in C++, where :mod:`rlhf.kernels.cpu_build` gets them compiled.

Products, statistics and gradients in float32 of float32 and bfloat16 inputs; all else is torch's.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlhf.kernels.cpu_build import library
from rlhf.kernels.cpu_products import NARROW, multiplies
from rlhf.kernels.rows import Reading, Statistics, Tile, Upstream

if TYPE_CHECKING:
    from rlhf.kernels.projection import Projection
    from rlhf.kernels.workspace import Workspace

POINTERS = (
    *("hidden", "weight", "bias", "cooling", "centre", "targets", "peak", "total", "weighted", "target"),
    *("upstream", "upstream_entropy", "out", "lost", "products"),
)
SIZES = (
    *("rows", "columns", "width", "hidden_stride", "weight_stride", "out_stride", "products_stride"),
    *("first", "threads"),
)


class Head(ctypes.Structure):
    """Kept the same as in ``cpu_head.cpp``, which says what each is."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((name, ctypes.c_int64) for name in SIZES),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("narrow", ctypes.c_int32),
        ("entropy", ctypes.c_int32),
    )


def has_rows(dtype: torch.dtype) -> bool:
    """Whether :func:`add_statistics` and :func:`gradients` are there for logits of this dtype."""
    return dtype in NARROW and library() is not None


def has_head(projection: Projection) -> bool:
    """Whether :func:`measure` and :func:`differentiate` are there for this head."""
    hidden, weight = projection.hidden, projection.weight
    if projection.device.type != "cpu" or hidden.dtype not in NARROW or 0 in (*hidden.shape, *weight.shape):
        return False
    if hidden.stride(1) != 1 or weight.stride(1) != 1 or not multiplies(NARROW[hidden.dtype]):
        return False
    pairs = (hidden.shape[1], weight.stride(0), weight.storage_offset())  # two bfloat16 are read as one word
    return hidden.dtype == torch.float32 or all(size % 2 == 0 for size in pairs)


def measure(projection: Projection, statistics: Statistics, *, entropy: bool) -> None:
    """Statistics of all rows over all columns."""
    _call(
        "head_statistics",
        projection.reading,
        statistics,
        hidden=projection.hidden,
        weight=projection.weight,
        bias=projection.block_bias(slice(None)),
        centre=projection.common_row(),
        entropy=entropy,
    )


def differentiate(  # noqa: PLR0917  a tile of what the backward is made of
    projection: Projection,
    rows: slice,
    columns: slice,
    statistics: Statistics,
    upstream: Upstream,
    out: Tensor,
    lost: Tensor | None,
) -> None:
    """d loss / d products of a tile into ``out`` (m, n), of the weight's dtype; see `Tile.lost`."""
    _call(
        "head_gradients",
        projection.reading.rows(rows),
        statistics.rows(rows),
        hidden=projection.hidden[rows],
        weight=projection.weight[columns],
        bias=projection.block_bias(columns),
        centre=projection.common_row(),
        first=columns.start,
        upstream=upstream.rows(rows),
        out=out,
        lost=lost,
    )


def add_statistics(tile: Tile, workspace: Workspace, *, entropy: bool) -> None:
    """See :class:`rlhf.kernels.rows.RowKernels`."""
    _call(
        "head_statistics",
        tile.reading,
        tile.statistics,
        bias=tile.bias,
        products=tile.products,
        first=tile.first,
        entropy=entropy,
    )


def gradients(tile: Tile, upstream: Upstream, out: Tensor, workspace: Workspace) -> None:
    """See :class:`rlhf.kernels.rows.RowKernels`."""
    _call(
        "head_gradients",
        tile.reading,
        tile.statistics,
        bias=tile.bias,
        products=tile.products,
        first=tile.first,
        upstream=upstream,
        out=out,
        lost=tile.lost,
    )


def _call(
    name: str,
    reading: Reading,
    statistics: Statistics,
    *,
    first: int = 0,
    hidden: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    centre: Tensor | None = None,
    products: Tensor | None = None,
    upstream: Upstream | None = None,
    out: Tensor | None = None,
    lost: Tensor | None = None,
    entropy: bool = False,
) -> None:
    tensors: dict[str, Tensor | None] = {
        "hidden": hidden,
        "weight": weight,
        "bias": bias,
        "cooling": _column(reading.cooling, statistics.peak),
        "centre": centre,
        "targets": reading.targets,
        **{part: getattr(statistics, part) for part in ("peak", "total", "weighted", "target")},
        "products": products,
        "upstream": None if upstream is None else _column(upstream.logprobs, statistics.peak),
        "upstream_entropy": None if upstream is None else _column(upstream.entropies, statistics.peak),
        "out": out,
        "lost": lost,
    }
    given: dict[str, Any] = {key: None if part is None else part.data_ptr() for key, part in tensors.items()}
    for key in ("hidden", "weight", "products", "out"):
        part = tensors[key]
        given[f"{key}_stride"] = 0 if part is None else part.stride(0)
    columns = weight.shape[0] if weight is not None else products.shape[1] if products is not None else 0
    narrow = (out if hidden is None else hidden) is not None and _is_narrow(out, hidden)
    head = Head(
        **given,
        rows=len(statistics.peak),
        columns=columns,
        width=0 if hidden is None else hidden.shape[1],
        first=first,
        threads=torch.get_num_threads(),
        scale=reading.scale,
        softcap=reading.softcap or 0.0,
        narrow=narrow,
        entropy=entropy,
    )
    compiled = library()
    assert compiled is not None
    getattr(compiled, name)(ctypes.byref(head))


def _is_narrow(*tensors: Tensor | None) -> bool:
    return any(tensor is not None and NARROW[tensor.dtype] for tensor in tensors)


def _column(value: Tensor | float | None, like: Tensor) -> Tensor | None:
    """(m,) contiguous float32."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return value.to(like.dtype).contiguous()
    return torch.full_like(like, value)
