"""Wrappers whose weights have a shape and no numbers, and whose attention keeps what the real one keeps.

They stand on torch's meta device: building one reads a configuration and no weights, and running one takes no
memory and no arithmetic. What is allocated on the way can be counted (`rlhf.planning`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedTokenizerBase

from rlhf.kernels.cpu_attention import LONGEST
from rlhf.kernels.cpu_build import attention_library
from rlhf.models.actor import Actor
from rlhf.models.decode_cache import DecodeCache
from rlhf.models.lora import LoRA
from rlhf.models.packing import PackedRows
from rlhf.models.pretrained import classifier_over, empty_causal_lm, empty_classifier
from rlhf.models.scalar import ScalarModel
from rlhf.models.sources import ModelSource, Pretrained

NAME = "shapes_alone"
META = torch.device("meta")


def actor_shape(
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    gradient_checkpointing: bool = False,
    packed: bool = False,
    lora: LoRA | None = None,
) -> Actor:
    """A policy without numbers, float32; arguments as of `rlhf.models.loading.load_actor`.

    Raises:
        FileNotFoundError: the source does not exist.
        ValueError: it is no language model, or cannot be packed or adapted.
    """
    generator = torch.Generator()
    with META:
        actor = Actor(
            _causal_lm(source, tokenizer, generator),
            gradient_checkpointing=gradient_checkpointing,
            packed=packed,
        )
        if lora is not None:
            lora(actor, generator)
    actor.model.set_attn_implementation(NAME)
    return actor


def scalar_shape(
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    fresh_head: bool,
    gradient_checkpointing: bool = False,
    packed: bool = False,
    lora: LoRA | None = None,
) -> ScalarModel:
    """A reward model or critic without numbers; as `rlhf.models.loading.load_scalar_model`."""
    generator = torch.Generator()
    with META:
        if fresh_head:
            model = classifier_over(_causal_lm(source, tokenizer, generator), source.name)
        else:
            assert isinstance(source, Pretrained)
            model = empty_classifier(source.path)
        scalar = ScalarModel(model, gradient_checkpointing=gradient_checkpointing, packed=packed)
        if lora is not None:
            lora(scalar, generator)
    scalar.model.set_attn_implementation(NAME)
    return scalar


def _causal_lm(
    source: ModelSource, tokenizer: PreTrainedTokenizerBase | None, generator: torch.Generator
) -> Any:
    if isinstance(source, Pretrained):
        return empty_causal_lm(source.path)
    assert tokenizer is not None  # a new model has the tokenizer's vocabulary
    return source.causal_lm(tokenizer, torch.float32, generator)


class _Attention(Function):
    """What `rlhf.kernels.cpu_attention` and torch's flash attention save: inputs, result, log-sums."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(…, heads, N, D) → (…, N, heads, D)."""
        query, key, value = (_along_tokens(part) for part in (query, key, value))
        out, norms = query.new_empty(query.shape), query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, norms)
        return out

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        return tuple(part.new_empty(part.shape).transpose(-2, -3) for part in (query, key, value))


def _along_tokens(states: Tensor) -> Tensor:
    along = states.transpose(-2, -3)
    return along if along.stride(-1) == 1 else along.contiguous()


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_rows: PackedRows | None = None,
    decode_cache: DecodeCache | None = None,
    on_gpu: bool = False,
    **others: Any,
) -> tuple[Tensor, None]:
    """In the place of `rlhf.models.packing.attention`, with its copies and no arithmetic."""
    if decode_cache is not None:
        decode_cache.store(module.layer_idx, key, value)
    if packed_rows is not None and not on_gpu and _in_one_call(query, packed_rows):
        return _Attention.apply(query[0], key[0], value[0]).unsqueeze(0), None
    if on_gpu:  # one kernel takes rows that stand together, and a key for each query
        groups = query.shape[1] // key.shape[1]
        query, key, value = query.clone(), *(part.repeat_interleave(groups, 1) for part in (key, value))
    found: Tensor = _Attention.apply(query, key, value)
    return (found if packed_rows is None else found.clone()), None


def _in_one_call(query: Tensor, rows: PackedRows) -> bool:
    """As `rlhf.kernels.cpu_attention.has_row_attention` says on a CPU."""
    short = query.dtype == torch.float32 and rows.table.longest <= LONGEST
    return short and attention_library() is not None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, lambda *sizes, **others: None)
