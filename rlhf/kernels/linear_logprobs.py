"""Hidden states → log-prob and entropy of each token, without logits of (tokens × vocabulary) in memory.

    z = cap·tanh(scale·(W·x + b)/cap)/T        log π(y) = z_y − logsumexp z        H = logsumexp z − E[z]

The forward goes over the logits tile by tile. The backward makes each tile again and turns it into its
gradient, with upstream gradients g of the log-prob and h of the entropy:

    ∂/∂z_j = g·(1[j = y] − p_j) − h·p_j·(z_j − E[z])

Four matrix products in all, each by the library; saved are x, W and four numbers a row. The oracle is
``rlhf.ops.logprobs`` on the whole logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from rlhf.kernels import cpu_head
from rlhf.kernels.arguments import flatten
from rlhf.kernels.projection import Gradients, Projection, empty_gradients, restore
from rlhf.kernels.rows import Reading, Statistics, Upstream, nonzero_rows
from rlhf.kernels.tiles import column_blocks, measuring_tiles
from rlhf.kernels.workspace import Workspace, spans, wide
from rlhf.ops.logprobs import TokenLogprobs


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float | Tensor = 1.0,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    mask: Tensor | None = None,
) -> TokenLogprobs:
    """Log-probs of ``targets`` and entropies, both differentiable with any upstream gradient.

    A gradient that nobody sends costs nothing: entropies that are only logged add no work to a backward,
    and rows whose upstream gradients are zero take no part in it.

    Args:
        hidden: (…, H), of the weight's dtype.
        weight: (V, H).
        targets: (…) int64 in [0, V); not read where the mask is False.
        temperature: positive; a number, or (…) one a token. No gradient flows into it.
        bias: (V,) added to the products.
        scale: factor on the products.
        softcap: positive cap of the logits before the temperature.
        mask: (…) bool; where it is False nothing is computed. None is True everywhere.

    Returns:
        log-probs and entropies (…) float32, 0 where the mask is False; float64 for float64 inputs.

    Raises:
        ValueError: shapes or dtypes do not fit, a target is outside [0, V), a temperature or the cap is not
            positive.
    """
    tokens = flatten(hidden, weight, targets, temperature, bias=bias, scale=scale, softcap=softcap, mask=mask)
    logprobs, entropies = _LinearLogprobs.apply(tokens.hidden, weight, bias, tokens.reading, True)
    return TokenLogprobs(tokens.place(logprobs), tokens.place(entropies))


def linear_token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float | Tensor = 1.0,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """:func:`linear_logprobs` for callers that want no entropy: (…) log-probs, and one sum less a logit."""
    tokens = flatten(hidden, weight, targets, temperature, bias=bias, scale=scale, softcap=softcap, mask=mask)
    logprobs, _ = _LinearLogprobs.apply(tokens.hidden, weight, bias, tokens.reading, False)
    return tokens.place(logprobs)


def measure(projection: Projection, *, entropy: bool) -> Statistics:
    """One pass over all tiles: what log-probs, entropies and their gradients are made of."""
    statistics = Statistics.start(projection.shape[0], projection.dtype, projection.device)
    if cpu_head.has_head(projection):
        cpu_head.measure(projection, statistics, entropy=entropy)
        return statistics
    workspace, kernels = Workspace(projection.device), projection.kernels
    for rows, columns in measuring_tiles(*projection.shape, projection.device):
        products = projection.products(rows, columns, workspace)
        kernels.add_statistics(
            projection.tile(products, rows, columns, statistics), workspace, entropy=entropy
        )
    return statistics


def differentiate(
    projection: Projection, statistics: Statistics, upstream: Upstream, wanted: tuple[bool, bool, bool]
) -> Gradients:
    """Gradients of hidden states, weight and bias, as ``wanted``, column block after column block.

    A block's part of dW is summed in the wide dtype and written once; d hidden grows over the blocks.
    """
    count, columns = projection.shape
    workspace = Workspace(projection.device)
    gradients = _empty(projection, wanted)
    fused, lost, mean_row = cpu_head.has_head(projection), projection.room_for_lost(), projection.mean_row()
    blocks, height = column_blocks(count, columns, projection.device, fused=fused)
    for block in blocks:
        total = _WeightBlock(projection, block, count > height, workspace)
        for rows in spans(count, height):
            d = _tile_gradient(projection, rows, block, statistics, upstream, lost, workspace)
            if gradients.hidden is not None:
                centre = projection.centre(mean_row)
                workspace.add_product(gradients.hidden[rows], d, projection.weight[block], centre)
            if gradients.weight is not None:
                total.add(d, projection.hidden[rows], gradients.weight[block])
            if gradients.bias is not None:
                gradients.bias[block] += d.sum(0, dtype=gradients.bias.dtype)
        if gradients.weight is not None:
            total.write(gradients.weight[block])
    if gradients.hidden is not None:
        restore(gradients.hidden, lost, mean_row)
    return gradients


def _tile_gradient(  # noqa: PLR0917
    projection: Projection,
    rows: slice,
    block: slice,
    statistics: Statistics,
    upstream: Upstream,
    lost: Tensor,
    workspace: Workspace,
) -> Tensor:
    """(m, n) d loss / d products in the dtype of the weight, in the workspace."""
    if cpu_head.has_head(projection):
        shape = (rows.stop - rows.start, block.stop - block.start)
        d = workspace.take("gradients", shape, projection.weight.dtype)
        cpu_head.differentiate(
            projection, rows, block, statistics, upstream, d, None if lost is None else lost[rows]
        )
        return d
    products = projection.products(rows, block, workspace)
    d = workspace.narrow("gradients", products, projection.weight.dtype)
    tile = projection.tile(products, rows, block, statistics, lost)
    projection.kernels.gradients(tile, upstream.rows(rows), d, workspace)
    return d


class _WeightBlock:
    """dW of a block of columns: the product itself where one tile has all rows, else a wide sum."""

    def __init__(self, projection: Projection, block: slice, several: bool, workspace: Workspace) -> None:
        self._sum: Tensor | None = None
        self._workspace = workspace
        if several:
            shape = (block.stop - block.start, projection.hidden.shape[1])
            self._sum = workspace.take("weight", shape, projection.dtype).zero_()

    def add(self, d: Tensor, hidden: Tensor, out: Tensor) -> None:
        """Take a tile in."""
        if self._sum is not None:
            self._workspace.add_product(self._sum, d.t(), hidden)
        elif out.is_cuda or out.dtype != wide(out.dtype):
            torch.mm(d.t(), hidden, out=out)
        else:
            self._workspace.add_product(out.zero_(), d.t(), hidden)

    def write(self, out: Tensor) -> None:
        """Round once."""
        if self._sum is not None:
            out.copy_(self._sum)


def _empty(projection: Projection, wanted: tuple[bool, bool, bool]) -> Gradients:
    """dW in the weight's own dtype: every element is written once, unless there are no rows."""
    made = empty_gradients(projection, (wanted[0], False, wanted[2]))
    if wanted[1]:
        weight = projection.weight
        made.weight = torch.empty_like(weight) if projection.shape[0] else torch.zeros_like(weight)
    return made


class _LinearLogprobs(Function):
    """Log-probs and entropies of (M,) rows; see the module."""

    @staticmethod
    def forward(  # noqa: PLR0917  autograd takes no keywords
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, reading: Reading, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        projection = Projection(hidden=hidden, weight=weight, bias=bias, reading=reading)
        found = measure(projection, entropy=entropy)
        ctx.save_for_backward(hidden, weight, bias)
        ctx.reading, ctx.statistics = reading, found
        ctx.set_materialize_grads(False)
        return found.logprobs, found.entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor | None, h: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        projection = Projection(hidden=hidden, weight=weight, bias=bias, reading=ctx.reading)
        upstream = Upstream(logprobs=g, entropies=h).contiguous()
        made = differentiate_active(projection, ctx.statistics, upstream, ctx.needs_input_grad[:3])
        return (
            None if made.hidden is None else made.hidden.to(hidden.dtype),
            made.weight,
            None if made.bias is None else made.bias.to(bias.dtype),
            None,
            None,
        )


def differentiate_active(
    projection: Projection, statistics: Statistics, upstream: Upstream, wanted: tuple[bool, bool, bool]
) -> Gradients:
    """:func:`differentiate` over the rows that have an upstream gradient; counting them is the only sync."""
    active = nonzero_rows(upstream, projection.reading.targets)
    if len(active) == projection.shape[0]:
        return differentiate(projection, statistics, upstream, wanted)
    made = differentiate(projection.take(active), statistics.rows(active), upstream.rows(active), wanted)
    if made.hidden is not None:
        made.hidden = made.hidden.new_zeros(projection.hidden.shape).index_copy_(0, active, made.hidden)
    return made
