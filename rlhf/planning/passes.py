"""Forward and backward passes of models without numbers; what they allocate is counted by `Held`.

Everything but the head and attention is the model's own code under torch's autograd. The head is made of the
same tensors in the same order as `rlhf.kernels.linear_logprobs` and `linear_token_loss` hold them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from rlhf.batch import position_ids
from rlhf.kernels.footprint import HeadSizes
from rlhf.kernels.tiles import compared_rows
from rlhf.models.actor import Actor
from rlhf.models.packing import Packed
from rlhf.models.scalar import ScalarModel
from rlhf.models.shapes import META

Wrapper = Actor | ScalarModel


@dataclass(kw_only=True, slots=True)
class Texts:
    """The rows of one forward pass."""

    tokens: Tensor
    """(B, L) int64."""
    real: Tensor
    """(B, L) bool, padding on either side."""
    scored: int
    """Tokens that the head of a policy sees."""
    columns: int = 0
    """T, of the (B, T) numbers that a rollout keeps of each token."""

    @property
    def count(self) -> int:
        """Real tokens."""
        return int(self.real.sum())


def states(wrapper: Wrapper, texts: Texts, *, on_gpu: bool) -> tuple[Tensor, Tensor]:
    """(N, H) hidden states of the tokens that are run, and the places (M,) of those that the head sees."""
    if not wrapper.packed:
        positions = position_ids(texts.real).to(META)
        output = wrapper.model.base_model(
            input_ids=texts.tokens.to(META),
            attention_mask=texts.real.long().to(META),
            position_ids=positions,
            use_cache=False,
            on_gpu=on_gpu,
        )
        return output.last_hidden_state.flatten(0, 1), _places(texts.scored)
    found = Packed.of(texts.tokens, texts.real).states(wrapper.model, on_gpu=on_gpu)
    return found, _places(texts.scored)


def _places(count: int) -> Tensor:
    return torch.empty(count, dtype=torch.int64, device=META)


def logprobs(actor: Actor, texts: Texts, *, on_gpu: bool, logits: bool = False) -> tuple[Tensor, ...]:
    """(M,) log-probs, with the graph that grad mode asks for; with ``logits`` (B, T, V) float32 ones too."""
    hidden, places = states(actor, texts, on_gpu=on_gpu)
    hidden = hidden[places]
    found = _TwoPasses.apply(hidden, actor.head.weight, on_gpu)
    if not logits:
        return (found,)
    made = actor.head(hidden, exact=True)
    shape = (len(texts.tokens), texts.columns, actor.vocabulary)
    rows, columns = (_places(len(hidden)) for _ in range(2))
    return found, made.new_zeros(shape).index_put((rows, columns), made)


def swept_loss(actor: Actor, texts: Texts, *, on_gpu: bool) -> Tensor:
    """A loss whose gradients the head has made in this forward."""
    hidden, places = states(actor, texts, on_gpu=on_gpu)
    return _OneSweep.apply(hidden[places], actor.head.weight, on_gpu)


def comparison_bytes(rows: int, columns: int, *, on_gpu: bool) -> int:
    """Of `rlhf.kernels.linear_divergence`: logits of two heads, eight-fold in all, of a chunk of rows."""
    device = torch.device("cuda" if on_gpu else "cpu")
    longest = max((part.stop - part.start for part in compared_rows(rows, columns, device)), default=0)
    return 8 * 4 * longest * columns


def values(model: ScalarModel, texts: Texts, *, on_gpu: bool) -> Tensor:
    """(B·L,) the head's output for each token."""
    hidden, _ = states(model, texts, on_gpu=on_gpu)
    found: Tensor = model.head(hidden)
    return found


class _TwoPasses(Function):
    """A head that makes its logits again in the backward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, on_gpu: bool) -> Tensor:
        sizes = _sizes(hidden, weight, on_gpu)
        kept = hidden.new_empty(6, len(hidden), dtype=torch.float32)  # sums, log-probs, entropies
        _room(hidden, sizes.measuring())
        ctx.save_for_backward(hidden, weight)
        ctx.sizes, ctx.kept = sizes, kept
        return kept[0]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        d_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        d_hidden = hidden.new_empty(hidden.shape, dtype=torch.float32)
        _room(hidden, ctx.sizes.differentiating())
        return d_hidden.to(hidden.dtype), d_weight, None


class _OneSweep(Function):
    """A head that makes its gradients in the forward and hands them out in the backward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, on_gpu: bool) -> Tensor:
        sizes = _sizes(hidden, weight, on_gpu)
        kept = hidden.new_empty(6, len(hidden), dtype=torch.float32)
        ctx.d_weight = None
        if ctx.needs_input_grad[1]:
            ctx.d_weight = torch.empty_like(weight, dtype=sizes.swept_weight)
        ctx.d_hidden = hidden.new_empty(hidden.shape, dtype=torch.float32)
        _room(hidden, sizes.sweeping())
        ctx.dtype = weight.dtype
        return kept.sum()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        made, ctx.d_hidden, d_weight, ctx.d_weight = ctx.d_hidden, None, ctx.d_weight, None
        return made.to(ctx.dtype), None if d_weight is None else d_weight.to(ctx.dtype), None


def _sizes(hidden: Tensor, weight: Tensor, on_gpu: bool) -> HeadSizes:
    columns, width = weight.shape
    return HeadSizes(rows=len(hidden), columns=columns, width=width, dtype=weight.dtype, on_gpu=on_gpu)


def _room(like: Tensor, size: int) -> None:
    """Take so many bytes for a moment."""
    like.new_empty(size, dtype=torch.uint8)
