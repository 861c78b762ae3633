"""``rlhf reward``: train a reward model on pairs of responses."""

from __future__ import annotations

from rlhf.cli.application import Command, Place
from rlhf.cli.pieces import exporter, open_folder, tokenizer_of, train_and_draw
from rlhf.cli.room import longest
from rlhf.config import Reward
from rlhf.models.loading import load_scalar_model
from rlhf.seeding import generator
from rlhf.trainers.reward_model import RewardModelTrainer


def train(config: Reward, place: Place) -> None:
    """Build the stage from its configuration and run it."""
    folder = open_folder(config, place)
    tokenizer = tokenizer_of(config.model)
    data = config.data.load(tokenizer)
    test = None if config.test_data.path is None else config.test_data.load(tokenizer)
    model = load_scalar_model(
        config.model,
        tokenizer,
        generator=generator(config.seed, "weights"),
        fresh_head=True,
        gradient_checkpointing=config.gradient_checkpointing,
        packed=config.packed,
        lora=config.lora,
    )
    longest(data, test).expect_room(model)
    engine = config.engine.train(model, config.optimizer(model), "reward")
    trainer = RewardModelTrainer(
        engine=engine,
        train=data,
        test=test,
        pair_loss=config.loss,
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


COMMAND = Command(schema=Reward, job=train)
