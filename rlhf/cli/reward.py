"""``rlhf reward``: train a reward model on comparisons between responses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.cli.application import Command, Place
from rlhf.cli.pieces import exporter, open_folder, tokenizer_of, train_and_draw
from rlhf.cli.room import longest
from rlhf.config import Reward
from rlhf.data.loaded import SupervisedSet
from rlhf.distributed.collectives import is_main
from rlhf.distributed.engine import Engine
from rlhf.models.loading import load_scalar_model
from rlhf.models.readouts import mark_readout
from rlhf.models.scalar import ScalarModel
from rlhf.models.score_shift import ScoreScale, expect_place_for_shift
from rlhf.seeding import generator
from rlhf.trainers.micro_batches import cut_for
from rlhf.trainers.normalisation import Normalisation, score_sums
from rlhf.trainers.reward_model import RewardModelTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def train(config: Reward, place: Place) -> None:
    """Build the stage from its configuration and run it."""
    folder = open_folder(config, place)
    tokenizer = tokenizer_of(config.model)
    data = config.data.load(tokenizer)
    test = None if config.test_data.path is None else config.test_data.load(tokenizer)
    demonstrations = _demonstrations(config, tokenizer)
    model = load_scalar_model(
        config.model,
        tokenizer,
        generator=generator(config.seed, "weights"),
        fresh_head=True,
        gradient_checkpointing=config.gradient_checkpointing,
        packed=config.packed,
        lora=config.lora,
    )
    mark_readout(model, config.readout)
    longest(data, test, demonstrations).expect_room(model)
    if demonstrations is not None:
        expect_place_for_shift(model.model, config.model.name)
    engine = config.engine.train(model, config.optimizer(model), "reward")

    trainer = RewardModelTrainer(
        engine=engine,
        train=data,
        test=test,
        loss=config.loss,
        readout=config.readout,
        schedule=config.schedule,
        batch_size=config.batch_size,
        micro_batch_size=config.micro_batch_size,
        micro_batch_tokens=config.micro_batch_tokens,
        total=max(int(config.epochs * len(data)) // config.batch_size, 1),
        seed=config.seed,
        runtime=place.runtime,
        export=_exporter(config, place, engine, tokenizer, demonstrations),
        non_finite=config.non_finite,
    )
    train_and_draw(trainer, folder, config)


def _demonstrations(config: Reward, tokenizer: PreTrainedTokenizerBase) -> SupervisedSet | None:
    data = config.normalise.data
    return None if data.path is None else data.load(tokenizer)


def _exporter(
    config: Reward,
    place: Place,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: SupervisedSet | None,
) -> Callable[[Path], None]:
    """Writes the model, its scores normalised where demonstrations are given."""
    if demonstrations is None:
        return exporter(engine, tokenizer)

    def rescaled() -> ScoreScale:
        try:
            return _normalised(config, place, engine, demonstrations)
        except ValueError as error:
            raw = place.folder / "model_as_trained"
            exporter(engine, tokenizer)(raw)
            raise ValueError(f"{error}; the model without it is in {raw}") from None

    return exporter(engine, tokenizer, rescaled=rescaled)


def _normalised(config: Reward, place: Place, engine: Engine, demonstrations: SupervisedSet) -> ScoreScale:
    """What scores are changed to, and ``normalisation.json`` with what was measured. Every rank calls it."""
    cut = cut_for(engine, config.micro_batch_size, config.micro_batch_tokens, place.runtime.world_size)
    sums = score_sums(engine, demonstrations, config.readout, cut, place.runtime)
    found = Normalisation.of(sums, unit_std=config.normalise.unit_std)
    if is_main():
        text = json.dumps(asdict(found) | {"data": config.normalise.data.path}, indent=2)
        (place.folder / "normalisation.json").write_text(text + "\n", encoding="utf-8")
    model = engine.module
    assert isinstance(model, ScalarModel)
    return found.scale(float(model.head.shift))


COMMAND = Command(schema=Reward, job=train)
