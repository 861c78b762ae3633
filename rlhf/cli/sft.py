"""``rlhf sft``: supervised fine-tuning, or training a small language model from scratch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf.cli.application import Command, Place
from rlhf.cli.pieces import exporter, open_folder, own_reference, tokenizer_of, train_and_draw
from rlhf.cli.room import Longest, longest
from rlhf.config import SFT
from rlhf.data.sources import read_rows
from rlhf.data.tokenizers import load_tokenizer, train_bpe
from rlhf.distributed.engine_config import Inference
from rlhf.models.actor import Actor
from rlhf.models.loading import expect_same_vocabulary, load_actor
from rlhf.models.sources import Pretrained
from rlhf.seeding import generator
from rlhf.trainers.supervised import Anchor, SupervisedTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def train(config: SFT, place: Place) -> None:
    """Build the stage from its configuration and run it."""
    folder = open_folder(config, place)
    tokenizer = _tokenizer(config)
    data = config.data.load(tokenizer)
    test = None if config.test_data.path is None else config.test_data.load(tokenizer)
    actor = load_actor(
        config.model,
        tokenizer,
        generator=generator(config.seed, "weights"),
        gradient_checkpointing=config.gradient_checkpointing,
        packed=config.packed,
        lora=config.lora,
    )
    text = longest(data, test)
    text.expect_room(actor)
    reference = _reference(config, actor, tokenizer, text)
    engine = config.engine.train(actor, config.optimizer(actor), "actor")
    trainer = SupervisedTrainer(
        engine=engine,
        train=data,
        test=test,
        schedule=config.schedule,
        batch_size=config.batch_size,
        micro_batch_size=config.micro_batch_size,
        micro_batch_tokens=config.micro_batch_tokens,
        total=max(int(config.epochs * len(data)) // config.batch_size, 1),
        seed=config.seed,
        runtime=place.runtime,
        export=exporter(engine, tokenizer),
        non_finite=config.non_finite,
        anchor=_anchor(config, reference or own_reference(engine)),
    )
    train_and_draw(trainer, folder, config)


def _anchor(config: SFT, reference: Inference | None) -> Anchor | None:
    """What ``kl_coef`` keeps the policy near to."""
    if config.kl_coef == 0:
        return None
    assert reference is not None
    return Anchor(reference=reference, coef=config.kl_coef)


def _reference(
    config: SFT, actor: Actor, tokenizer: PreTrainedTokenizerBase, text: Longest
) -> Inference | None:
    """The reference of ``kl_coef``; None where there is none, or where the policy has its start inside."""
    path = config.reference.path
    if config.kl_coef == 0 or (path is None and config.lora is not None):
        return None
    reference = load_actor(
        config.model if path is None else Pretrained(path=path),
        tokenizer,
        generator=generator(config.seed, "weights"),
        packed=config.packed,
    )
    expect_same_vocabulary(actor, reference)
    text.expect_room(reference)
    return config.engine.inference(reference, "reference")


def _tokenizer(config: SFT) -> PreTrainedTokenizerBase:
    """The one that is named, the model's own, or one trained on the texts of the data."""
    if config.tokenizer.path is not None:
        return load_tokenizer(config.tokenizer.path)
    if isinstance(config.model, Pretrained):
        return tokenizer_of(config.model)
    if config.data.path is None:
        raise ValueError("data.path must name the demonstrations, got null")
    rows = read_rows(config.data.path, config.data.split, config=config.data.config)
    texts = [value for row in rows for value in row.values.values() if isinstance(value, str)]
    return train_bpe(texts, config.tokenizer.vocab_size)


COMMAND = Command(schema=SFT, job=train)
