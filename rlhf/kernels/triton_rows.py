"""Row kernels in Triton; see :mod:`rlhf.kernels.rows`.

Values are widened to float32 as they are loaded. Offsets are int64: a tile may hold more than 2³¹ logits.
Nothing is added atomically, so that two runs give the same bits.
"""

# ruff: noqa: PLR0917  a launch passes its arguments by position
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlhf.kernels.rows import Tile, Upstream
from rlhf.kernels.workspace import Workspace

BLOCK = 4096
"""Columns that a program holds in registers."""
WARPS = 8


@triton.jit
def bent(products, bias, columns, inside, cooling, scale, cap, HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr):
    """Logits over the temperature."""
    z = products.to(tl.float32)
    if HAS_BIAS:
        z += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    z = z * scale
    if HAS_CAP:
        z = cap * bounded(z / cap)
    return z * cooling


@triton.jit
def bounded(x):
    """tanh(x), without overflow."""
    e = tl.exp(-2.0 * tl.abs(x))
    t = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -t, t)


@triton.jit(do_not_specialize=["first"])
def statistics_kernel(
    products,
    bias,
    cooling,
    targets,
    peak,
    total,
    weighted,
    target,
    stride,
    columns,
    first,
    scale,
    cap,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: its running maximum, sums and target logit, taken over the tile's columns."""
    row = tl.program_id(0).to(tl.int64)
    products += row * stride
    inverse = tl.load(cooling + row)
    m, s, w = tl.load(peak + row), tl.load(total + row), tl.load(weighted + row)
    for start in range(0, columns, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        inside = offsets < columns
        a = tl.load(products + offsets, mask=inside, other=0.0)
        z = bent(a, bias, offsets, inside, inverse, scale, cap, HAS_BIAS, HAS_CAP)
        grown = tl.maximum(m, tl.max(tl.where(inside, z, float("-inf")), 0))
        shift = m - grown
        relative = tl.where(inside, z - grown, 0.0)
        e = tl.where(inside, tl.exp(relative), 0.0)
        shrink = tl.exp(shift)
        if ENTROPY:
            w = (w + shift * s) * shrink + tl.sum(e * relative, 0)
        s = s * shrink + tl.sum(e, 0)
        m = grown
    tl.store(peak + row, m)
    tl.store(total + row, s)
    tl.store(weighted + row, w)
    place = tl.load(targets + row) - first
    here = (place >= 0) & (place < columns)
    a = tl.load(products + place, mask=here, other=0.0)
    z = bent(a, bias, place, here, inverse, scale, cap, HAS_BIAS, HAS_CAP)
    tl.store(target + row, z, mask=here)


@triton.jit(do_not_specialize=["first"])
def gradients_kernel(
    products,
    bias,
    cooling,
    targets,
    peak,
    total,
    weighted,
    upstream,
    upstream_entropy,
    out,
    stride,
    out_stride,
    columns,
    first,
    scale,
    cap,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_LOGPROB: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one row: products into their gradient."""
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < columns
    inverse = tl.load(cooling + row)
    m, s = tl.load(peak + row), tl.load(total + row)
    a = tl.load(products + row * stride + offsets, mask=inside, other=0.0)
    z = bent(a, bias, offsets, inside, inverse, scale, cap, HAS_BIAS, HAS_CAP)
    p = tl.exp(z - m) / s
    d = tl.zeros([BLOCK], tl.float32)
    if HAS_LOGPROB:
        hit = offsets == tl.load(targets + row) - first
        d += tl.load(upstream + row) * (tl.where(hit, 1.0, 0.0) - p)
    if HAS_ENTROPY:
        mean = tl.load(weighted + row) / s
        d -= tl.load(upstream_entropy + row) * p * (z - m - mean)
    if HAS_CAP:
        t = z / (cap * inverse)
        d *= 1.0 - t * t
    d *= scale * inverse
    tl.store(out + row * out_stride + offsets, d.to(out.dtype.element_ty), mask=inside)


def add_statistics(tile: Tile, workspace: Workspace, *, entropy: bool) -> None:
    """See :class:`rlhf.kernels.rows.RowKernels`."""
    products, statistics = tile.products, tile.statistics
    if products.shape[0] == 0:
        return
    statistics_kernel[(products.shape[0],)](
        products,
        products if tile.bias is None else tile.bias,
        _cooling(tile),
        tile.reading.targets,
        statistics.peak,
        statistics.total,
        statistics.weighted,
        statistics.target,
        products.stride(0),
        products.shape[1],
        tile.first,
        tile.reading.scale,
        tile.reading.softcap or 1.0,
        HAS_BIAS=tile.bias is not None,
        HAS_CAP=tile.reading.softcap is not None,
        ENTROPY=entropy,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )


def gradients(tile: Tile, upstream: Upstream, out: Tensor, workspace: Workspace) -> None:
    """See :class:`rlhf.kernels.rows.RowKernels`."""
    products, statistics = tile.products, tile.statistics
    if products.shape[0] == 0:
        return
    rows, columns = products.shape
    gradients_kernel[(rows, triton.cdiv(columns, BLOCK))](
        products,
        products if tile.bias is None else tile.bias,
        _cooling(tile),
        tile.reading.targets,
        statistics.peak,
        statistics.total,
        statistics.weighted,
        statistics.peak if upstream.logprobs is None else upstream.logprobs,
        statistics.peak if upstream.entropies is None else upstream.entropies,
        out,
        products.stride(0),
        out.stride(0),
        columns,
        tile.first,
        tile.reading.scale,
        tile.reading.softcap or 1.0,
        HAS_BIAS=tile.bias is not None,
        HAS_CAP=tile.reading.softcap is not None,
        HAS_LOGPROB=upstream.logprobs is not None,
        HAS_ENTROPY=upstream.entropies is not None,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )


def _cooling(tile: Tile) -> Tensor:
    cooling = tile.reading.cooling
    if isinstance(cooling, Tensor):
        return cooling
    return torch.full((tile.products.shape[0],), cooling, device=tile.products.device)
