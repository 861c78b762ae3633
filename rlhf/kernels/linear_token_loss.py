"""Forward and backward of the head in one sweep, for losses that are elementwise in the log-prob.

A chunk of rows has its log-probs as soon as its logits are there. With the derivative of the loss asked for
at once, the chunk's logits become their own gradient: three matrix products, where a forward and a later
backward need four. The gradients wait for the backward of the whole model, which multiplies them by its
upstream scalar.

On a CPU whose head is compiled (`rlhf.kernels.cpu_head`) logits are made again: that product stays in the
caches, in three of the four shapes of benchmark C3 costs no more than writing logits and reading them, and
takes a small part of their memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from rlhf.kernels import cpu_head
from rlhf.kernels.arguments import Tokens, flatten
from rlhf.kernels.linear_logprobs import differentiate_active, measure
from rlhf.kernels.projection import Gradients, Projection, empty_gradients, restore
from rlhf.kernels.rows import Reading, Statistics, Upstream, nonzero_rows
from rlhf.kernels.tiles import sweep_columns, sweep_rows
from rlhf.kernels.workspace import Workspace
from rlhf.ops.logprobs import TokenLogprobs

TokenLoss = Callable[[TokenLogprobs], Tensor]
"""From log-probs and entropies (…) to the loss of each token (…), its weight in the step included.

It is called several times, with some tokens' numbers still 0, so each token's loss may depend on that token's
numbers alone, and the call must change nothing.
"""


class SweptLoss(NamedTuple):
    """What one sweep knows."""

    loss: Tensor
    """Sum over tokens; its backward hands out the gradients, once."""
    losses: Tensor
    """(…) its terms, detached; 0 where the mask is False."""
    logprobs: Tensor
    """(…) detached."""
    entropies: Tensor
    """(…) detached."""


def linear_token_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float | Tensor = 1.0,
    *,
    token_loss: TokenLoss,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    mask: Tensor | None = None,
) -> SweptLoss:
    """``token_loss(linear_logprobs(…)).sum()``, same gradients; in 3/4 of the work where logits are kept.

    Where entropies do not enter the loss their gradient costs nothing.

    Args:
        hidden: see :func:`rlhf.kernels.linear_logprobs.linear_logprobs`, as for all but ``token_loss``.
        weight: (V, H).
        targets: (…).
        temperature: positive.
        token_loss: see :data:`TokenLoss`; tokens outside the mask do not count, whatever it says of them.
        bias: (V,).
        scale: factor on the products.
        softcap: cap of the logits.
        mask: (…) bool.

    Raises:
        ValueError: as ``linear_logprobs``; or the loss has another shape than the targets, or couples tokens
            (a sequence's ratio, a pair's margin), which takes the two passes of ``linear_logprobs``.
    """
    tokens = flatten(hidden, weight, targets, temperature, bias=bias, scale=scale, softcap=softcap, mask=mask)
    derivative = _Derivative(token_loss, tokens)
    loss, *numbers = _LinearTokenLoss.apply(tokens.hidden, weight, bias, tokens.reading, derivative)
    return SweptLoss(loss, *(tokens.place(values) for values in numbers))


class _Derivative:
    """The loss of each kept token and its derivatives, by autograd over numbers of tokens alone."""

    def __init__(self, token_loss: TokenLoss, tokens: Tokens) -> None:
        self._token_loss, self._tokens = token_loss, tokens

    @torch.enable_grad()
    def __call__(self, statistics: Statistics) -> tuple[Tensor, Tensor, Tensor | None]:
        """(M,) loss, d loss / d log-prob, and d loss / d entropy or None."""
        given = [self._tokens.place(v).requires_grad_() for v in (statistics.logprobs, statistics.entropies)]
        loss = self._token_loss(TokenLogprobs(*given))
        if loss.shape != given[0].shape:
            raise ValueError(f"token_loss gave shape {tuple(loss.shape)}, expected {tuple(given[0].shape)}")
        slopes: tuple[Tensor | None, ...] = (None, None)
        if loss.requires_grad:
            slopes = torch.autograd.grad(loss.sum(), given, allow_unused=True)
        g, h = (None if slope is None else self._tokens.keep(slope) for slope in slopes)
        kept = self._tokens.keep(loss.detach()).to(given[0].dtype)
        return kept, torch.zeros_like(kept) if g is None else g, h


@dataclass(kw_only=True, slots=True)
class _Chunk:
    """The rows of a chunk that have a gradient."""

    projection: Projection
    statistics: Statistics
    upstream: Upstream


class _Sweep:
    """The chunks of one call: statistics, derivative and gradients of each before the next."""

    def __init__(
        self, projection: Projection, derivative: _Derivative, wanted: tuple[bool, bool, bool]
    ) -> None:
        self._projection, self._derivative = projection, derivative
        self._workspace = Workspace(projection.device)
        self._chunks = list(sweep_rows(projection.hidden, projection.weight))
        self.statistics = Statistics.start(projection.shape[0], projection.dtype, projection.device)
        self.gradients = empty_gradients(projection, (wanted[0], wanted[1] and not self._once, wanted[2]))
        self._mean_row = projection.mean_row()
        if wanted[1] and self._once:
            self.gradients.weight = torch.empty_like(projection.weight)

    @property
    def _once(self) -> bool:
        """Whether each element of dW is written once, and so in its own dtype."""
        return len(self._chunks) == 1

    def run(self) -> Tensor:
        """(M,) the loss of each token."""
        found = [self._chunk(rows) for rows in self._chunks]
        if self._once:
            return found[0][0]
        loss, g, h = self._derivative(self.statistics)
        if found:
            _expect_elementwise([upstream for _, upstream in found], g, h)
        return loss

    def _chunk(self, rows: slice) -> tuple[Tensor, Upstream]:
        """The loss of each token, as far as is known, and the derivatives of this chunk's."""
        logits = self._measured(rows)
        loss, g, h = self._derivative(self.statistics)
        upstream = Upstream(logprobs=g, entropies=h).rows(rows)
        self._differentiate(rows, logits, upstream)
        return loss, upstream

    def _measured(self, rows: slice) -> Tensor:
        """(m, V) products in the wide dtype; the statistics of the rows are made on the way."""
        projection, workspace = self._projection, self._workspace
        logits = workspace.product("logits", projection.hidden[rows], projection.weight.t())
        for columns in self._columns(rows):
            tile = projection.tile(logits[:, columns], rows, columns, self.statistics)
            projection.kernels.add_statistics(tile, workspace, entropy=True)
        return logits

    def _differentiate(self, rows: slice, logits: Tensor, upstream: Upstream) -> None:
        """The chunk's logits become their gradient; on a CPU those of rows that have one."""
        projection, gradients = self._projection, self.gradients
        index = torch.arange(rows.start, rows.stop, device=logits.device)
        active = None if logits.is_cuda else nonzero_rows(upstream, index)
        if active is not None and len(active) < len(index):
            index, upstream = index[active], upstream.rows(active)
        else:
            active = None
        chunk = _Chunk(
            projection=projection.take(index), statistics=self.statistics.rows(index), upstream=upstream
        )
        lost = projection.room_for_lost()[: len(index)]
        d_hidden = None
        if gradients.hidden is not None:
            d_hidden = gradients.hidden.new_zeros(len(index), gradients.hidden.shape[1])
        for columns in self._columns(rows):
            self._differentiate_block(chunk, logits, active, columns, d_hidden, lost)
        if gradients.hidden is not None and d_hidden is not None:
            restore(d_hidden, lost, self._mean_row)
            gradients.hidden.index_copy_(0, index, d_hidden)

    def _differentiate_block(  # noqa: PLR0917
        self,
        chunk: _Chunk,
        logits: Tensor,
        active: Tensor | None,
        columns: slice,
        d_hidden: Tensor | None,
        lost: Tensor,
    ) -> None:
        """Some columns: the gradient is used up."""
        head, workspace, gradients = chunk.projection, self._workspace, self.gradients
        products = logits[:, columns]
        if active is not None:
            room = workspace.take("active", (len(active), products.shape[1]), products.dtype)
            products = torch.index_select(products, 0, active, out=room)
        d = workspace.narrow("gradients", products, head.weight.dtype)
        tile = head.tile(products, slice(0, len(products)), columns, chunk.statistics, lost)
        head.kernels.gradients(tile, chunk.upstream, d, workspace)
        if gradients.weight is not None and self._once:
            torch.mm(d.t(), head.hidden, out=gradients.weight[columns])
        elif gradients.weight is not None:
            workspace.add_product(gradients.weight[columns], d.t(), head.hidden)
        if gradients.bias is not None:
            gradients.bias[columns] += d.sum(0, dtype=gradients.bias.dtype)
        if d_hidden is not None:
            workspace.add_product(d_hidden, d, head.weight[columns], head.centre(self._mean_row))

    def _columns(self, rows: slice) -> Iterator[slice]:
        return sweep_columns(rows.stop - rows.start, self._projection.shape[1], self._projection.device)


class _Swept(NamedTuple):
    """What a sweep has found of M rows."""

    losses: Tensor
    """(M,)."""
    statistics: Statistics
    gradients: Gradients


def _swept(projection: Projection, derivative: _Derivative, wanted: tuple[bool, bool, bool]) -> _Swept:
    if not cpu_head.has_head(projection):
        sweep = _Sweep(projection, derivative, wanted)
        return _Swept(sweep.run(), sweep.statistics, sweep.gradients)
    statistics = measure(projection, entropy=True)
    losses, g, h = derivative(statistics)
    upstream = Upstream(logprobs=g, entropies=h).contiguous()
    return _Swept(losses, statistics, differentiate_active(projection, statistics, upstream, wanted))


def _expect_elementwise(used: list[Upstream], g: Tensor, h: Tensor | None) -> None:
    """Refuse a loss whose derivative changed as other tokens' numbers came in."""
    for name, final in (("logprobs", g), ("entropies", h)):
        parts = [getattr(upstream, name) for upstream in used]
        if final is None or any(part is None for part in parts):
            continue
        if not torch.allclose(torch.cat(parts), final, rtol=1e-4, atol=0.0, equal_nan=True):
            raise ValueError(
                "token_loss couples tokens: its derivative at a token depends on other tokens' log-probs; "
                "use linear_logprobs and a backward"
            )


class _LinearTokenLoss(Function):
    """The summed loss; the gradients are made in the forward and handed out in the backward."""

    @staticmethod
    def forward(  # noqa: PLR0917  autograd takes no keywords
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        reading: Reading,
        derivative: _Derivative,
    ) -> tuple[Tensor, ...]:
        projection = Projection(hidden=hidden, weight=weight, bias=bias, reading=reading)
        losses, statistics, gradients = _swept(projection, derivative, ctx.needs_input_grad[:3])
        ctx.gradients, ctx.dtype = gradients, weight.dtype
        numbers = (losses, statistics.logprobs, statistics.entropies)
        ctx.mark_non_differentiable(*numbers)
        return losses.sum(), *numbers

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("linear_token_loss: its gradients were already handed out; call it again")
        made, ctx.gradients = ctx.gradients, None
        return *made.handed_out(upstream, ctx.dtype), None, None
