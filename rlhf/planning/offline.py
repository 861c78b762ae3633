"""What training on given rows takes: ``rlhf sft``, ``rlhf reward``, ``rlhf preference``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlhf.batch import LabelledBatch
from rlhf.config import SFT, Preference, Reward
from rlhf.data.loaded import ComparisonSet, LabelledSet, PreferenceSet, SupervisedSet
from rlhf.data.sources import read_rows
from rlhf.data.tokenizers import load_tokenizer, train_bpe
from rlhf.models.actor import Actor
from rlhf.models.shapes import actor_shape, scalar_shape
from rlhf.models.sources import Pretrained
from rlhf.planning.memory_plan import MemoryPlan, Term
from rlhf.planning.passes import Texts, comparison_bytes, logprobs, states, swept_loss, values
from rlhf.planning.roles import AnyTrained, Frozen, Machine, Trained, forward_bytes
from rlhf.planning.rows import Fullest, filler_pairs, filler_texts, fullest, loaded, sequences
from rlhf.planning.updates import Loss, add_loading, add_update, add_writing, rehearsed
from rlhf.trainers.feedback import stack
from rlhf.trainers.micro_batches import Cut

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Data = SupervisedSet | ComparisonSet | PreferenceSet | LabelledSet


def sft(config: SFT, plan: MemoryPlan, machine: Machine) -> None:
    """Supervised fine-tuning."""
    tokenizer = _tokenizer(config)
    data = loaded(
        config.data,
        lambda: config.data.load(tokenizer or load_tokenizer(_folder(config))),
        lambda: filler_texts(config.data.max_length),
        plan.notes,
    )
    shape = _actor(config, tokenizer)
    found = _fullest(config, data, machine)
    texts = sequences(data.batch(torch.tensor(found.rows)).trimmed())
    loss = partial(swept_loss, shape, texts, on_gpu=machine.on_gpu)
    others = _anchor(config, tokenizer, machine)
    _add_training(config, plan, machine, Trained("actor", shape, config.engine, machine), loss, found, others)
    _note(plan, texts, found)
    if config.kl_coef > 0:
        plan.widen("update", _anchored(others, shape.vocabulary, texts, machine))


def reward(config: Reward, plan: MemoryPlan, machine: Machine) -> None:
    """A reward model."""
    data = loaded(
        config.data,
        lambda: config.data.load(load_tokenizer(config.model.folder)),
        lambda: filler_pairs(config.data.max_length).compared(),
        plan.notes,
    )
    shape = scalar_shape(
        config.model,
        None,
        fresh_head=True,
        gradient_checkpointing=config.gradient_checkpointing,
        packed=config.packed,
        lora=config.lora,
    )
    found = _fullest(config, data, machine)
    texts = sequences(data.batch(torch.tensor(found.rows)).texts())
    loss = partial(values, shape, texts, on_gpu=machine.on_gpu)
    _add_training(config, plan, machine, Trained("reward", shape, config.engine, machine), loss, found)
    _note(plan, texts, found)


def preference(config: Preference, plan: MemoryPlan, machine: Machine) -> None:
    """A policy from feedback; the reference is measured, and gone, before the policy is read."""
    data = loaded(
        config.data,
        lambda: _feedback(config, load_tokenizer(config.model.folder)),
        lambda: filler_pairs(config.data.max_length),
        plan.notes,
    )
    shape = _actor(config, None)
    found = _fullest(config, data, machine)
    batch = data.batch(torch.tensor(found.rows))
    both = batch.text if isinstance(batch, LabelledBatch) else stack(batch.chosen, batch.rejected)
    texts = sequences(both.trimmed())
    if config.loss.needs_reference:
        _add_reference(config, plan, machine, texts)
    loss = partial(_logprobs, shape, texts, on_gpu=machine.on_gpu)
    _add_training(config, plan, machine, Trained("actor", shape, config.engine, machine), loss, found)
    _note(plan, texts, found)


def _actor(config: SFT | Preference, tokenizer: PreTrainedTokenizerBase | None) -> Actor:
    return actor_shape(
        config.model,
        tokenizer,
        gradient_checkpointing=config.gradient_checkpointing,
        packed=config.packed,
        lora=config.lora,
    )


def _add_training(  # noqa: PLR0917
    config: SFT | Reward | Preference,
    plan: MemoryPlan,
    machine: Machine,
    model: AnyTrained,
    loss: Loss,
    found: Fullest,
    others: Sequence[Frozen[Actor]] = (),
) -> None:
    """Reading, learning and writing of one model."""
    always = [*model.always(), *(term for other in others for term in other.always())]
    add_loading(plan, [*others, model])
    add_update(plan, always, [model], rehearsed([loss], [model], found.passes))
    add_writing(plan, always, [model])


def _fullest(config: SFT | Reward | Preference, data: Data, machine: Machine) -> Fullest:
    cut = Cut.shared(config.micro_batch_size, config.micro_batch_tokens, machine.ranks, packed=config.packed)
    return fullest(
        len(data),
        data.sizes,
        cut,
        batch_size=config.batch_size,
        steps=max(int(config.epochs * len(data)) // config.batch_size, 1),
        seed=config.seed,
        ranks=machine.ranks,
    )


def _note(plan: MemoryPlan, texts: Texts, found: Fullest) -> None:
    passes = f"{found.passes} passes" if found.passes > 1 else "one pass"
    plan.notes.append(
        f"the fullest pass of the first steps: {texts.count} tokens of {len(texts.tokens)} texts, "
        f"in a step of {passes}"
    )


def _feedback(config: Preference, tokenizer: PreTrainedTokenizerBase) -> PreferenceSet | LabelledSet:
    reads_pairs = type(config.loss).reads_pairs
    return config.data.load_pairs(tokenizer) if reads_pairs else config.data.load_labelled(tokenizer)


def _logprobs(actor: Actor, texts: Texts, *, on_gpu: bool) -> Tensor:
    return logprobs(actor, texts, on_gpu=on_gpu)[0]


def _add_reference(config: Preference, plan: MemoryPlan, machine: Machine, texts: Texts) -> None:
    path = config.reference.path
    source = config.model if path is None else Pretrained(path=path)
    reference = Frozen("reference", actor_shape(source, None, packed=config.packed), config.engine, machine)
    held = forward_bytes(partial(_logprobs, reference.wrapper, texts, on_gpu=machine.on_gpu))
    forward = Term(owner="passes", part="activations, head", bytes=held)
    plan.add("reference", reference.always(), reference.forward(), [forward])


def _anchor(config: SFT, tokenizer: PreTrainedTokenizerBase | None, machine: Machine) -> list[Frozen[Actor]]:
    """The reference of ``kl_coef``, where it is a model of its own."""
    path = config.reference.path
    if config.kl_coef == 0 or (path is None and config.lora is not None):
        return []
    source = config.model if path is None else Pretrained(path=path)
    return [Frozen("reference", actor_shape(source, tokenizer, packed=config.packed), config.engine, machine)]


def _anchored(others: Sequence[Frozen[Actor]], columns: int, texts: Texts, machine: Machine) -> list[Term]:
    """What the comparison with the reference holds beside the policy's pass."""
    held = comparison_bytes(texts.scored, columns, on_gpu=machine.on_gpu)
    for other in others:
        held += forward_bytes(lambda: states(other.wrapper, texts, on_gpu=machine.on_gpu))  # noqa: B023
    return [
        Term(owner="passes", part="the reference's, and logits of both", bytes=held),
        *(term for other in others for term in other.forward()),
    ]


def _folder(config: SFT) -> str:
    assert isinstance(config.model, Pretrained)
    return config.model.folder


def _tokenizer(config: SFT) -> PreTrainedTokenizerBase | None:
    """Of a model that is built from scratch: its vocabulary is that of the tokenizer."""
    if config.tokenizer.path is not None:
        return load_tokenizer(config.tokenizer.path)
    if isinstance(config.model, Pretrained):
        return None
    if config.data.path is None:
        raise ValueError("data.path must name the demonstrations, got null")
    rows = read_rows(config.data.path, config.data.split, config=config.data.config)
    texts = [value for row in rows for value in row.values.values() if isinstance(value, str)]
    return train_bpe(texts, config.tokenizer.vocab_size)
