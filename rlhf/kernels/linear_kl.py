"""Exact KL between two heads over the whole vocabulary, without logits of (tokens × vocabulary) in memory.

    KL(p‖q) = Σ_v p_v·(log p_v − log q_v) = E_p[z − z'] − logsumexp z + logsumexp z'

With upstream g, ∂/∂z_j = g·p_j·((z_j − z'_j) − E_p[z − z']). The oracle is ``rlhf.ops.logprobs.exact_kl``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from rlhf.kernels.arguments import flatten
from rlhf.kernels.projection import Gradients, Projection, empty_gradients
from rlhf.kernels.rows import Reading
from rlhf.kernels.tiles import column_blocks
from rlhf.kernels.torch_rows import bend, slope_of_cap
from rlhf.kernels.workspace import Workspace, spans


def linear_kl(
    hidden: Tensor,
    weight: Tensor,
    other_hidden: Tensor,
    other_weight: Tensor,
    temperature: float | Tensor = 1.0,
    *,
    bias: Tensor | None = None,
    other_bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """KL of the head's distribution from that of another head, differentiable in the first.

    Args:
        hidden: (…, H), of the weight's dtype.
        weight: (V, H).
        other_hidden: (…, H'), the reference; no gradient flows into it.
        other_weight: (V, H').
        temperature: positive, of both; a number, or (…) one a token.
        bias: (V,).
        other_bias: (V,).
        scale: factor on the products, of both.
        softcap: positive cap of the logits, of both.
        mask: (…) bool; where it is False nothing is computed.

    Returns:
        (…) float32 nats, 0 where the mask is False; float64 for float64 inputs.

    Raises:
        ValueError: shapes or dtypes do not fit, the vocabularies differ, or a temperature or the cap is not
            positive.
    """
    if weight.shape[0] != other_weight.shape[0]:
        raise ValueError(
            f"the vocabularies have {weight.shape[0]} and {other_weight.shape[0]} tokens, expected one size"
        )
    nothing = torch.zeros(hidden.shape[:-1], dtype=torch.int64, device=hidden.device)
    heads = ((hidden, weight, bias), (other_hidden, other_weight, other_bias))
    first, second = (
        flatten(x, w, nothing, temperature, bias=b, scale=scale, softcap=softcap, mask=mask)
        for x, w, b in heads
    )
    other = Projection(
        hidden=second.hidden.detach(),
        weight=other_weight.detach(),
        bias=None if other_bias is None else other_bias.detach(),
        reading=second.reading,
    )
    return first.place(_LinearKL.apply(first.hidden, weight, bias, first.reading, other))


class _LinearKL(Function):
    """KL of (M,) rows."""

    @staticmethod
    def forward(  # noqa: PLR0917  autograd takes no keywords
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, reading: Reading, other: Projection
    ) -> Tensor:
        heads = _Heads(Projection(hidden=hidden, weight=weight, bias=bias, reading=reading), other)
        sums = heads.measure()
        ctx.save_for_backward(hidden, weight, bias, other.hidden, other.weight, other.bias)
        ctx.readings, ctx.sums = (reading, other.reading), sums
        return sums.mean - sums.total.log() + sums.other_total.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        first, second = (
            Projection(hidden=x, weight=w, bias=b, reading=reading)
            for (x, w, b), reading in zip((saved[:3], saved[3:]), ctx.readings, strict=True)
        )
        made = _Heads(first, second).differentiate(ctx.sums, upstream, ctx.needs_input_grad[:3])
        parts = (made.hidden, made.weight, made.bias)
        return *(None if part is None else part.to(first.weight.dtype) for part in parts), None, None


class _Sums:
    """Running sums of each row, relative to the largest logit so far of p and of q."""

    def __init__(self, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        lowest = torch.full((rows,), torch.finfo(dtype).min, dtype=dtype, device=device)
        self.peak, self.other_peak = lowest, lowest.clone()
        self.total, self.other_total, self.weighted = (torch.zeros_like(lowest) for _ in range(3))

    @property
    def mean(self) -> Tensor:
        """(M,) E_p[(z − peak) − (z' − peak')]."""
        return self.weighted / self.total

    def add(self, z: Tensor, other: Tensor, rows: slice) -> None:
        """Take a tile of logits of both in; it is lost."""
        peak = torch.maximum(self.peak[rows], z.amax(1))
        other_peak = torch.maximum(self.other_peak[rows], other.amax(1))
        shift, other_shift = self.peak[rows] - peak, self.other_peak[rows] - other_peak
        z.sub_(peak.unsqueeze(1))
        other.sub_(other_peak.unsqueeze(1))
        difference, e = z - other, z.exp_()
        moved = (shift - other_shift) * self.total[rows]
        self.weighted[rows] = (self.weighted[rows] + moved) * shift.exp() + difference.mul_(e).sum(1)
        self.total[rows] = self.total[rows] * shift.exp() + e.sum(1)
        self.other_total[rows] = self.other_total[rows] * other_shift.exp() + other.exp_().sum(1)
        self.peak[rows], self.other_peak[rows] = peak, other_peak


class _Heads:
    """Both heads, tile by tile."""

    def __init__(self, first: Projection, second: Projection) -> None:
        self._first, self._second = first, second
        self._workspace = Workspace(first.device)

    def measure(self) -> _Sums:
        """One pass over all tiles."""
        sums = _Sums(self._first.shape[0], self._first.dtype, self._first.device)
        for rows, block in self._tiles():
            z, other = self._logits(rows, block)
            sums.add(z, other, rows)
        return sums

    def differentiate(self, sums: _Sums, upstream: Tensor, wanted: tuple[bool, bool, bool]) -> Gradients:
        """Gradients of the first hidden states, weight and bias, in the wide dtype."""
        hidden, weight = self._first.hidden, self._first.weight
        made = empty_gradients(self._first, wanted)
        for rows, block in self._tiles():
            d = self._gradient(rows, block, sums, upstream)
            if made.hidden is not None:
                self._workspace.add_product(made.hidden[rows], d, weight[block])
            if made.weight is not None:
                self._workspace.add_product(made.weight[block], d.t(), hidden[rows])
            if made.bias is not None:
                made.bias[block] += d.sum(0, dtype=made.bias.dtype)
        return made

    def _tiles(self) -> Iterator[tuple[slice, slice]]:
        count, columns = self._first.shape
        blocks, height = column_blocks(count, columns, self._first.device)
        return ((rows, block) for block in blocks for rows in spans(count, height))

    def _gradient(self, rows: slice, block: slice, sums: _Sums, upstream: Tensor) -> Tensor:
        """(m, n) d KL / d product of the first head, in its dtype."""
        reading = self._first.reading.rows(rows)
        z, other = self._logits(rows, block)
        slope = slope_of_cap(z, reading)
        z.sub_(sums.peak[rows].unsqueeze(1))
        other.sub_(sums.other_peak[rows].unsqueeze(1))
        excess = (z - other).sub_(sums.mean[rows].unsqueeze(1))
        share = upstream[rows] * reading.scale * reading.cooling / sums.total[rows]
        d = z.exp_().mul_(excess).mul_(share.unsqueeze(1))
        return (d if slope is None else d.mul_(slope)).to(self._first.weight.dtype)

    def _logits(self, rows: slice, block: slice) -> tuple[Tensor, Tensor]:
        """(m, n) of both over the temperature."""
        return self._bent("first", self._first, rows, block), self._bent("second", self._second, rows, block)

    def _bent(self, name: str, head: Projection, rows: slice, block: slice) -> Tensor:
        products = self._workspace.product(name, head.hidden[rows], head.weight[block].t())
        return bend(products, head.block_bias(block), head.reading.rows(rows), products)
