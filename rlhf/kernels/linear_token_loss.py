"""Forward and backward of the head in one sweep, for losses that are elementwise in the log-prob.

A chunk of rows has its log-probs as soon as its logits are there. With the derivative of the loss asked for
at once, the chunk's logits become their own gradient: three matrix products, where a forward and a later
backward need four. The gradients wait for the backward of the whole model, which multiplies them by its
upstream scalar.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from rlhf.kernels.arguments import Tokens, flatten
from rlhf.kernels.projection import Projection, empty_gradients
from rlhf.kernels.rows import Reading, Statistics, Upstream
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
    """``token_loss(linear_logprobs(…)).sum()``, the same gradients in three quarters of the work.

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
    loss, logprobs, entropies = _LinearTokenLoss.apply(
        tokens.hidden, weight, bias, tokens.reading, derivative
    )
    return SweptLoss(loss, tokens.place(logprobs), tokens.place(entropies))


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
        g, h = (None if slope is None else self._kept(slope) for slope in slopes)
        kept = self._kept(loss.detach()).to(given[0].dtype)
        return kept, torch.zeros_like(kept) if g is None else g, h

    def _kept(self, values: Tensor) -> Tensor:
        flat, kept = values.reshape(-1), self._tokens.kept
        return flat.contiguous() if kept is None else flat[kept]


class _Sweep:
    """The chunks of one call: statistics, derivative and gradients of each before the next."""

    def __init__(
        self, projection: Projection, derivative: _Derivative, wanted: tuple[bool, bool, bool]
    ) -> None:
        self._projection, self._derivative = projection, derivative
        self._workspace = Workspace(projection.device)
        self.statistics = Statistics.start(projection.shape[0], projection.dtype, projection.device)
        self.gradients = empty_gradients(projection, wanted)

    def run(self) -> Tensor:
        """(M,) the loss of each token."""
        projection = self._projection
        chunks = sweep_rows(*projection.shape, projection.device, projection.hidden.dtype)
        used = [self._chunk(rows) for rows in chunks]
        loss, g, h = self._derivative(self.statistics)
        _expect_elementwise(used, g, h)
        return loss

    def _chunk(self, rows: slice) -> Upstream:
        projection, workspace = self._projection, self._workspace
        logits = workspace.product("logits", projection.hidden[rows], projection.weight.t())
        for columns in self._columns(rows):
            products = workspace.widened("products", logits[:, columns])
            tile = projection.tile(products, rows, columns, self.statistics)
            projection.kernels.add_statistics(tile, workspace, entropy=True)
        _, g, h = self._derivative(self.statistics)
        upstream = Upstream(logprobs=g, entropies=h).rows(rows)
        self._differentiate(rows, logits, upstream)
        return upstream

    def _differentiate(self, rows: slice, logits: Tensor, upstream: Upstream) -> None:
        """The chunk's logits become their gradient, block by block, and the gradient is used up."""
        projection, workspace, gradients = self._projection, self._workspace, self.gradients
        gradient = workspace.narrow("gradients", logits, projection.weight.dtype)
        for columns in self._columns(rows):
            products, d = workspace.widened("products", logits[:, columns]), gradient[:, columns]
            tile = projection.tile(products, rows, columns, self.statistics)
            projection.kernels.gradients(tile, upstream, d, workspace)
            if gradients.weight is not None:
                workspace.add_product(gradients.weight[columns], d.t(), projection.hidden[rows])
            if gradients.bias is not None:
                gradients.bias[columns] += d.sum(0, dtype=gradients.bias.dtype)
        if gradients.hidden is not None:
            gradients.hidden[rows] = workspace.product("hidden", gradient, projection.weight)

    def _columns(self, rows: slice) -> Iterator[slice]:
        return sweep_columns(rows.stop - rows.start, self._projection.shape[1], self._projection.device)


def _expect_elementwise(used: list[Upstream], g: Tensor, h: Tensor | None) -> None:
    """Refuse a loss whose derivative changed as other tokens' numbers came in."""
    if len(used) < 2:
        return
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
    ) -> tuple[Tensor, Tensor, Tensor]:
        projection = Projection(hidden=hidden, weight=weight, bias=bias, reading=reading)
        sweep = _Sweep(projection, derivative, ctx.needs_input_grad[:3])
        loss = sweep.run().sum()
        ctx.gradients, ctx.dtype = sweep.gradients, weight.dtype
        logprobs, entropies = sweep.statistics.logprobs, sweep.statistics.entropies
        ctx.mark_non_differentiable(logprobs, entropies)
        return loss, logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("linear_token_loss: its gradients were already handed out; call it again")
        made, ctx.gradients = ctx.gradients, None
        parts = (made.hidden, made.weight, made.bias)
        return (
            *(None if part is None else part.mul_(upstream).to(ctx.dtype) for part in parts),
            None,
            None,
        )
