"""``rlhf preference``: a policy from preferences alone, by DPO or one of its relatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from rlhf.cli.application import Command, Place
from rlhf.cli.pieces import exporter, open_folder, tokenizer_of, train_and_draw
from rlhf.cli.room import longest
from rlhf.config import Preference
from rlhf.data.feedback import FeedbackData
from rlhf.data.tokenizers import fingerprint
from rlhf.distributed.collectives import on_main
from rlhf.models.actor import Actor
from rlhf.models.loading import load_actor
from rlhf.models.lora import LoRA
from rlhf.models.sources import Pretrained
from rlhf.seeding import generator
from rlhf.trainers.feedback import Feedback, feedback_of
from rlhf.trainers.micro_batches import Cut
from rlhf.trainers.preference import PreferenceTrainer
from rlhf.trainers.reference_logprobs import FILE, of_texts, of_weights, reference_logprobs, store, stored

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def train(config: Preference, place: Place) -> None:
    """Build the stage from its configuration and run it."""
    folder = open_folder(config, place)
    tokenizer = tokenizer_of(config.model)
    data = _feedback(config, config.data, tokenizer)
    test = None if config.test_data.path is None else _feedback(config, config.test_data, tokenizer)
    if config.loss.needs_reference:
        _give_reference(config, place, tokenizer, data, test)
    actor = _actor(config, config.model, tokenizer, (data, test), lora=config.lora)
    engine = config.engine.train(actor, config.optimizer(actor), "actor")
    trainer = PreferenceTrainer(
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
    )
    train_and_draw(trainer, folder, config)


def _feedback(config: Preference, data: FeedbackData, tokenizer: PreTrainedTokenizerBase) -> Feedback:
    """The rows under the loss: pairs, or labelled responses."""
    load = data.load_pairs if type(config.loss).reads_pairs else data.load_labelled
    return feedback_of(load(tokenizer), config.loss, config.sft_coef)


def _actor(
    config: Preference,
    source: Pretrained,
    tokenizer: PreTrainedTokenizerBase,
    texts: tuple[Feedback, Feedback | None],
    *,
    lora: LoRA | None = None,
) -> Actor:
    """A policy with positions for the longest text."""
    actor = load_actor(
        source,
        tokenizer,
        generator=generator(config.seed, "weights"),
        gradient_checkpointing=config.gradient_checkpointing,
        packed=config.packed,
        lora=lora,
    )
    longest(*(None if rows is None else rows.rows for rows in texts)).expect_room(actor)
    return actor


def _give_reference(
    config: Preference,
    place: Place,
    tokenizer: PreTrainedTokenizerBase,
    data: Feedback,
    test: Feedback | None,
) -> None:
    """Give the rows the reference's log-probs, from the run's folder or measured now; then let it go."""
    path, file = config.reference.path, place.folder / FILE
    actor = _actor(config, config.model if path is None else Pretrained(path=path), tokenizer, (data, test))
    sets = {"data": data} | ({} if test is None else {"test_data": test})

    def fingerprints() -> dict[str, str]:
        models = {"reference": of_weights(actor), "tokenizer": fingerprint(tokenizer)}
        return models | {name: of_texts(rows.texts) for name, rows in sets.items()}

    made_with = on_main(fingerprints)
    columns = stored(file, made_with)
    if columns is None and config.resume:
        raise ValueError(f"resume=true, but {file}, which the run so far was trained with, is gone")
    if columns is None:
        columns = _measured(config, place, actor, sets)
        store(file, columns, made_with)
    for name, rows in sets.items():
        rows.reference = columns[name].view(2, -1).T


def _measured(
    config: Preference, place: Place, actor: Actor, sets: Mapping[str, Feedback]
) -> dict[str, Tensor]:
    """(2N,) log-probs of each set's texts under the actor, which is no good for anything afterwards."""
    runtime = place.runtime
    cut = Cut.shared(
        config.micro_batch_size, config.micro_batch_tokens, runtime.world_size, packed=config.packed
    )
    reference = config.engine.inference(actor, "reference")
    columns = {
        name: reference_logprobs(reference, rows.texts, pad_id=rows.rows.pad_id, cut=cut, runtime=runtime)
        for name, rows in sets.items()
    }
    reference.release()
    return columns


COMMAND = Command(schema=Preference, job=train)
