"""From a source to a wrapper that is checked: dropout zero, tokenizer fits, numbers are the model's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf.models.actor import Actor
from rlhf.models.beginnings import LEAST
from rlhf.models.dropout import dropout_left, zero_dropout
from rlhf.models.lora import LoRA
from rlhf.models.pretrained import classifier_over
from rlhf.models.scalar import ScalarModel
from rlhf.models.score_shift import without_shift
from rlhf.models.sources import ModelSource, Pretrained

TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest accepted difference of logits, relative to the largest logit."""


def load_actor(
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator,
    gradient_checkpointing: bool = False,
    packed: bool = False,
    lora: LoRA | None = None,
) -> Actor:
    """A policy (or, with ``frozen``, a reference) on the CPU.

    Args:
        source: where the model comes from.
        tokenizer: gives new models their vocabulary and all models their end and pad ids.
        dtype: of the weights.
        generator: random weights depend on it alone.
        gradient_checkpointing: recompute activations in backward.
        packed: run rows end to end, without padding.
        lora: train adapters in place of the weights.

    Raises:
        FileNotFoundError: the source does not exist.
        ValueError: the source is damaged or no language model, does not fit the tokenizer, computes
            its logits in a way that the wrapper does not know, cannot be packed or cannot be adapted.
    """
    model = source.causal_lm(tokenizer, dtype, generator)
    _prepare(model, tokenizer, source.name)
    actor = Actor(model, gradient_checkpointing=gradient_checkpointing, packed=packed)
    expect_own_logits(actor, source.name)
    expect_rows_apart(actor, source.name)
    _adapt(actor, lora, source, generator)
    return actor


def load_scalar_model(
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator,
    fresh_head: bool,
    gradient_checkpointing: bool = False,
    packed: bool = False,
    lora: LoRA | None = None,
) -> ScalarModel:
    """A reward model or critic on the CPU.

    Args:
        source: a language model with ``fresh_head``, a reward model without.
        tokenizer: as for :func:`load_actor`.
        dtype: of the weights.
        generator: random weights depend on it alone.
        fresh_head: put a random head (numerics D20) on the language model; else the head must be there.
        gradient_checkpointing: recompute activations in backward.
        packed: run rows end to end, without padding.
        lora: train adapters and the head in place of the weights.

    Raises:
        FileNotFoundError: the source does not exist.
        ValueError: the source is damaged, is not of the kind needed, does not fit the tokenizer, or cannot
            be packed or adapted.
    """
    if fresh_head:
        model = classifier_over(source.causal_lm(tokenizer, dtype, generator), source.name)
    elif isinstance(source, Pretrained):
        model = source.classifier(tokenizer, dtype)
    else:
        raise ValueError(f"{source.name} is no reward model: its weights are random; name a trained one")
    shift = without_shift(model)
    _prepare(model, tokenizer, source.name)
    scalar = ScalarModel(model, gradient_checkpointing=gradient_checkpointing, packed=packed)
    scalar.head.shift.fill_(shift)
    if fresh_head:
        scalar.head.draw(generator)
    expect_rows_apart(scalar, source.name)
    _adapt(scalar, lora, source, generator)
    return scalar


def _adapt(
    wrapper: Actor | ScalarModel, lora: LoRA | None, source: ModelSource, generator: torch.Generator
) -> None:
    """Give it adapters where they are wanted; random weights would be lost, for adapters are saved alone."""
    if lora is None:
        return
    if not isinstance(source, Pretrained):
        raise ValueError(f"lora needs a model that somebody trained, got {source.name} with random weights")
    lora(wrapper, generator)


def expect_same_vocabulary(first: Actor | ScalarModel, second: Actor | ScalarModel) -> None:
    """Refuse two models whose log-probs or scores could not be of the same tokens.

    Raises:
        ValueError: they have different numbers of tokens; names both.
    """
    if first.vocabulary != second.vocabulary:
        names = [model.model.config.name_or_path or type(model.model).__name__ for model in (first, second)]
        raise ValueError(
            f"vocabulary mismatch: {names[0]} has {first.vocabulary} tokens, "
            f"{names[1]} has {second.vocabulary}"
        )


@torch.no_grad()
def expect_own_logits(actor: Actor, name: str) -> None:
    """Compare the wrapper's logits with the transformers model's own, on a row with left padding too.

    Raises:
        ValueError: they differ, so the wrapper lacks something that the model does to its logits.
    """
    tokens = torch.arange(6).reshape(1, 6) % actor.vocabulary
    real = torch.ones_like(tokens, dtype=torch.bool)
    own = actor.model(input_ids=tokens, attention_mask=real.long()).logits[:, :-1].to(torch.float64)
    padded, padding = torch.cat([tokens[:, :2], tokens], 1), torch.zeros_like(real[:, :2])
    plain = actor.logits(tokens, real, 1)
    shifted = actor.logits(padded, torch.cat([padding, real], 1), 3)
    tolerance = TOLERANCES[actor.head.weight.dtype] * max(float(own.abs().max()), 1e-30)
    for logits, what in ((plain, "logits"), (shifted, "logits with left padding")):
        gap = float((logits.to(torch.float64) - own).abs().max())
        if not gap <= tolerance:
            kind = type(actor.model).__name__
            raise ValueError(f"{name}: {kind} is not supported, our {what} differ from its own by {gap:.2g}")


@torch.no_grad()
def expect_rows_apart(wrapper: Actor | ScalarModel, name: str) -> None:
    """Compare rows end to end, where they run so, with the same rows one by one.

    Raises:
        ValueError: they differ, so the model lets a row see the one before it.
    """
    if not wrapper.packed:
        return
    width = LEAST + 2
    tokens = torch.arange(3 * width).reshape(3, width) % wrapper.vocabulary
    tokens[2, :-1] = tokens[1, :-1]  # what two rows begin with is run once
    real = torch.arange(width) < torch.tensor([[4], [width], [width]])
    together = _first(wrapper(tokens, real, 1))
    alone = torch.cat([_first(wrapper(tokens[i : i + 1], real[i : i + 1], 1)) for i in range(3)])
    gap = float((together - alone).abs().max())
    tolerance = TOLERANCES[wrapper.head.weight.dtype] * max(float(alone.abs().max()), 1.0)
    if not gap <= tolerance:
        kind = type(wrapper.model).__name__
        raise ValueError(
            f"{name}: rows of {kind} end to end differ from single ones by {gap:.2g}; set packed=false"
        )


def _first(found: Tensor | tuple[Tensor, ...]) -> Tensor:
    return found if isinstance(found, Tensor) else found[0]


def _prepare(model: Any, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Dropout zero, vocabulary checked, end and pad ids recorded where the folder is saved from."""
    zero_dropout(model)
    left = dropout_left(model)
    assert not left, left
    rows = model.get_input_embeddings().num_embeddings
    needed = max(set(tokenizer.get_vocab().values()) - {tokenizer.pad_token_id}) + 1
    if needed > rows:
        raise ValueError(
            f"the tokenizer does not fit {name}: it has {needed} tokens, the model embeds {rows}"
        )
    pad = tokenizer.pad_token_id
    model.config.pad_token_id = (
        pad if pad is not None and pad < rows else None
    )  # transformers embeds PAD, we do not
    if model.config.eos_token_id is None:
        model.config.eos_token_id = tokenizer.eos_token_id
