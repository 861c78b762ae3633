"""``rlhf sft``: supervised fine-tuning, or training a small language model from scratch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf.cli.application import Command, Place
from rlhf.cli.pieces import exporter, open_folder, tokenizer_of, train_and_draw
from rlhf.cli.room import Longest, longest
from rlhf.config import SFT
from rlhf.data.sources import read_rows
from rlhf.data.tokenizers import load_tokenizer, train_bpe
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
    )
    text = longest(data, test)
    text.expect_room(actor)
    anchor = _anchor(config, actor, tokenizer, text)
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
        anchor=anchor,
    )
    train_and_draw(trainer, folder, config)


def _anchor(config: SFT, actor: Actor, tokenizer: PreTrainedTokenizerBase, text: Longest) -> Anchor | None:
    """The reference of ``kl_coef``."""
    if config.kl_coef == 0:
        return None
    path = config.reference.path
    reference = load_actor(
        config.model if path is None else Pretrained(path=path),
        tokenizer,
        generator=generator(config.seed, "weights"),
        packed=config.packed,
    )
    expect_same_vocabulary(actor, reference)
    text.expect_room(reference)
    return Anchor(reference=config.engine.inference(reference, "reference"), coef=config.kl_coef)


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
