"""Log-probs and entropies from logits that are there already: one pass forward, one backward.

Neither makes another (tokens × vocabulary) tensor, apart from the gradient that autograd hands on. The logits
are not changed: they belong to the caller.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from rlhf.kernels.arguments import flatten_logits
from rlhf.kernels.rows import Reading, Statistics, Tile, Upstream, row_kernels
from rlhf.kernels.tiles import row_blocks
from rlhf.kernels.workspace import Workspace, wide
from rlhf.ops.logprobs import TokenLogprobs


def row_logprobs(logits: Tensor, targets: Tensor, temperature: float | Tensor = 1.0) -> TokenLogprobs:
    """`rlhf.ops.logprobs.logprobs_and_entropies` with the row kernels of the head.

    Args:
        logits: (…, V) finite.
        targets: (…) int64 in [0, V).
        temperature: positive; a number, or (…) one a token.

    Returns:
        log-probs and entropies (…) float32; float64 for float64 logits.

    Raises:
        ValueError: shapes do not fit, a target is outside [0, V), or a temperature is not positive.
    """
    rows, reading = flatten_logits(logits, targets, temperature)
    logprobs, entropies = _RowLogprobs.apply(rows, reading)
    return TokenLogprobs(logprobs.reshape(targets.shape), entropies.reshape(targets.shape))


class _RowLogprobs(Function):
    """Of (M, V) logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, reading: Reading) -> tuple[Tensor, Tensor]:
        found = Statistics.start(len(logits), wide(logits.dtype), logits.device)
        workspace, kernels = Workspace(logits.device), row_kernels(logits.device, logits.dtype)
        for _, tile in _tiles(logits, reading, found, workspace):
            kernels.add_statistics(tile, workspace, entropy=True)
        ctx.save_for_backward(logits)
        ctx.reading, ctx.statistics = reading, found
        ctx.set_materialize_grads(False)
        return found.logprobs, found.entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor | None, h: Tensor | None) -> tuple[Tensor | None, None]:
        if g is None and h is None:
            return None, None
        (logits,) = ctx.saved_tensors
        upstream = Upstream(logprobs=g, entropies=h).contiguous()
        gradient = torch.empty_like(logits)
        workspace, kernels = Workspace(logits.device), row_kernels(logits.device, logits.dtype)
        for rows, tile in _tiles(logits, ctx.reading, ctx.statistics, workspace):
            if not logits.is_cuda and tile.products.dtype == logits.dtype:
                tile.products = workspace.like("products", tile.products).copy_(tile.products)
            kernels.gradients(tile, upstream.rows(rows), gradient[rows], workspace)
        return gradient, None


def _tiles(
    logits: Tensor, reading: Reading, statistics: Statistics, workspace: Workspace
) -> Iterator[tuple[slice, Tile]]:
    """Whole rows; Triton widens them as it loads them."""
    for rows in row_blocks(len(logits), logits.shape[1], logits.device):
        products = logits[rows] if logits.is_cuda else workspace.widened("products", logits[rows])
        yield (
            rows,
            Tile(
                products=products,
                first=0,
                bias=None,
                reading=reading.rows(rows),
                statistics=statistics.rows(rows),
            ),
        )
