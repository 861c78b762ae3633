"""A head against another one over the whole vocabulary, forward and gradients in one sweep over chunks.

    loss = Σ w·D(p, q) − u·log p(y)        p: this head's distribution, q: the other's, D: any divergence

The other head may have another width, bias, scale and cap; no gradient flows into it. A chunk of rows has the
logits of both heads, and turns them into numbers and gradients before the next: (tokens × vocabulary) never
exists. The gradients wait for the backward of the whole model, as in `rlhf.kernels.linear_token_loss`:
nothing is computed twice, and the other head's weight, which ZeRO-3 gathers for the forward, can go then.
The oracles are ``rlhf.ops.divergences`` and ``rlhf.ops.logprobs`` on the whole logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from rlhf.kernels.arguments import flatten
from rlhf.kernels.projection import Gradients, Projection, empty_gradients
from rlhf.kernels.tiles import compared_rows
from rlhf.kernels.torch_rows import bend, slope_of_cap
from rlhf.kernels.workspace import Workspace
from rlhf.ops.divergences import Diverged

Comparison = Callable[[Tensor, Tensor], Diverged]
"""From log-probs (m, V) of this head and of the other to the divergence of each row and its gradient."""


class SweptDivergence(NamedTuple):
    """What one sweep knows; all but the loss detached, (…), and 0 where the mask is False."""

    loss: Tensor
    """Sum over tokens; its backward hands out the gradients, once."""
    divergences: Tensor
    forward_kl: Tensor
    """KL(q‖p), nats."""
    reverse_kl: Tensor
    """KL(p‖q), nats."""
    logprobs: Tensor
    """log p of the targets."""
    other_logprobs: Tensor
    """log q of the targets."""
    entropies: Tensor
    other_entropies: Tensor


@dataclass(kw_only=True, slots=True)
class OtherHead:
    """A head that another one is compared with, over hidden states of its own model."""

    hidden: Tensor
    """(…, H')."""
    weight: Tensor
    """(V, H'), whole."""
    bias: Tensor | None
    """(V,)."""
    scale: float
    softcap: float | None


def linear_divergence(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float | Tensor = 1.0,
    *,
    other: OtherHead,
    divergence: Comparison,
    weights: Tensor,
    target_weights: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    mask: Tensor | None = None,
) -> SweptDivergence:
    """The weighted divergence from the other head, less the weighted log-probs of the targets.

    Args:
        hidden: (…, H), of the weight's dtype.
        weight: (V, H).
        targets: (…) int64 in [0, V).
        temperature: positive, of both heads; a number, or (…) one a token.
        other: the head that it is compared with.
        divergence: see :data:`Comparison`.
        weights: (…) w.
        target_weights: (…) u; None is 0.
        bias: (V,).
        scale: factor on the products.
        softcap: positive cap of the logits before the temperature.
        mask: (…) bool; where it is False nothing is computed.

    Returns:
        float32; float64 for float64 inputs.

    Raises:
        ValueError: shapes or dtypes do not fit, the vocabularies differ, a target is outside [0, V), or a
            temperature or a cap is not positive.
    """
    if weight.shape[0] != other.weight.shape[0]:
        raise ValueError(
            f"the vocabularies have {weight.shape[0]} and {other.weight.shape[0]} tokens, expected one size"
        )
    first = flatten(hidden, weight, targets, temperature, bias=bias, scale=scale, softcap=softcap, mask=mask)
    sweep = _Sweep(
        second=_frozen(other, targets, temperature, mask),
        divergence=divergence,
        weights=first.keep(weights),
        target_weights=None if target_weights is None else first.keep(target_weights),
        learns=torch.is_grad_enabled(),
    )
    loss, *numbers = _LinearDivergence.apply(first.hidden, weight, bias, first.reading, sweep)
    return SweptDivergence(loss, *(first.place(values) for values in numbers))


def _frozen(head: OtherHead, targets: Tensor, temperature: float | Tensor, mask: Tensor | None) -> Projection:
    """The other head over the tokens inside the mask, without gradient."""
    weight, bias = head.weight.detach(), None if head.bias is None else head.bias.detach()
    tokens = flatten(
        head.hidden.detach(),
        weight,
        targets,
        temperature,
        bias=bias,
        scale=head.scale,
        softcap=head.softcap,
        mask=mask,
    )
    return Projection(hidden=tokens.hidden, weight=weight, bias=bias, reading=tokens.reading)


@dataclass(kw_only=True, slots=True)
class _Sweep:
    """What one head is held against, row by row."""

    second: Projection
    divergence: Comparison
    weights: Tensor
    """(M,)."""
    target_weights: Tensor | None
    """(M,)."""
    learns: bool
    """Whether anybody asks for gradients."""

    def __call__(self, first: Projection, wanted: tuple[bool, bool, bool]) -> tuple[Tensor, Gradients]:
        """(8, M) loss and numbers of each token, and the gradients of the loss's sum."""
        workspace = Workspace(first.device)
        found = first.hidden.new_zeros((8, first.shape[0]), dtype=first.dtype)
        gradients = empty_gradients(first, wanted if self.learns else (False, False, False))
        for rows in compared_rows(*first.shape, first.device):
            z = _logits("first", first, rows, workspace)
            student = z.log_softmax(1)
            teacher = _logits("second", self.second, rows, workspace).log_softmax(1)
            diverged = self.divergence(student, teacher)
            found[:, rows] = self._numbers(rows, diverged, student, teacher, first)
            if any(part is not None for part in (gradients.hidden, gradients.weight, gradients.bias)):
                d = self._gradient(rows, diverged, student, z, first)
                _add(gradients, first, rows, d, workspace)
        return found, gradients

    def _numbers(
        self, rows: slice, diverged: Diverged, student: Tensor, teacher: Tensor, first: Projection
    ) -> Tensor:
        """(8, m) the fields of `SweptDivergence` in their order, the loss token by token."""
        targets = first.reading.targets[rows].unsqueeze(1)
        own, others = (side.gather(1, targets).squeeze(1) for side in (student, teacher))
        loss = self.weights[rows] * diverged.values
        if self.target_weights is not None:
            loss = loss - self.target_weights[rows] * own
        p, q, gap = student.exp(), teacher.exp(), student - teacher
        both = -(q * gap).sum(1), (p * gap).sum(1)
        entropies = -p.mul_(student).sum(1), -q.mul_(teacher).sum(1)
        return torch.stack([loss, diverged.values, *both, own, others, *entropies])

    def _gradient(
        self, rows: slice, diverged: Diverged, student: Tensor, z: Tensor, first: Projection
    ) -> Tensor:
        """(m, V) of the loss with respect to the products of the first head, in its dtype."""
        reading = first.reading.rows(rows)
        d = diverged.gradient * self.weights[rows].unsqueeze(1)
        if self.target_weights is not None:
            u = self.target_weights[rows].unsqueeze(1)
            d += u * student.exp()
            d.scatter_add_(1, reading.targets.unsqueeze(1), -u)
        steepness = reading.scale * reading.cooling
        d *= steepness.unsqueeze(1) if isinstance(steepness, Tensor) else steepness
        slope = slope_of_cap(z, reading)
        return (d if slope is None else d * slope).to(first.weight.dtype)


def _logits(name: str, head: Projection, rows: slice, workspace: Workspace) -> Tensor:
    """(m, V) over the temperature, in buffer ``name``."""
    products = workspace.product(name, head.hidden[rows], head.weight.t())
    return bend(products, head.block_bias(slice(None)), head.reading.rows(rows), products)


def _add(gradients: Gradients, first: Projection, rows: slice, d: Tensor, workspace: Workspace) -> None:
    """Add what a chunk with d loss / d products ``d`` (m, V) gives."""
    if gradients.hidden is not None:
        workspace.add_product(gradients.hidden[rows], d, first.weight)
    if gradients.weight is not None:
        workspace.add_product(gradients.weight, d.t(), first.hidden[rows])
    if gradients.bias is not None:
        gradients.bias += d.sum(0, dtype=gradients.bias.dtype)


class _LinearDivergence(Function):
    """The summed loss; the gradients are made in the forward and handed out in the backward."""

    @staticmethod
    def forward(  # noqa: PLR0917  autograd takes no keywords
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, reading: Any, sweep: _Sweep
    ) -> tuple[Tensor, ...]:
        first = Projection(hidden=hidden, weight=weight, bias=bias, reading=reading)
        found, ctx.gradients = sweep(first, ctx.needs_input_grad[:3])
        ctx.dtype = weight.dtype
        losses, *numbers = (column.clone() for column in found)
        ctx.mark_non_differentiable(*numbers)
        return losses.sum(), *numbers

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("linear_divergence: its gradients were already handed out; call it again")
        made, ctx.gradients = ctx.gradients, None
        return *made.handed_out(upstream, ctx.dtype), None, None
