"""``rlhf rl``: online reinforcement learning from a reward model or function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf.cli.application import Command, Place
from rlhf.cli.pieces import (
    copy_for_sampling,
    exporter,
    float32_copy,
    load_reward,
    open_folder,
    own_reference,
    prompts_of,
    sampler_for,
    sampling_actor,
    tokenizer_of,
    train_and_draw,
)
from rlhf.cli.room import Longest, longest
from rlhf.config import RL
from rlhf.distributed.averaging import WeightAverage
from rlhf.distributed.engine import Engine
from rlhf.distributed.engine_config import Inference
from rlhf.distributed.runtime import Runtime
from rlhf.models.actor import Actor
from rlhf.models.loading import expect_same_vocabulary, load_actor, load_scalar_model
from rlhf.seeding import generator
from rlhf.trainers.collection import Sizes
from rlhf.trainers.micro_batches import Cut, exact_div
from rlhf.trainers.online import Models
from rlhf.trainers.policy_gradient import PolicyGradientTrainer
from rlhf.trainers.pretraining import Pretraining

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def train(config: RL, place: Place) -> None:
    """Build the stage from its configuration and run it."""
    folder = open_folder(config, place)
    tokenizer = tokenizer_of(config.actor.model)
    prompts = prompts_of(config.prompts, tokenizer)
    test = None if config.test_prompts.path is None else prompts_of(config.test_prompts, tokenizer)
    actor = load_actor(
        config.actor.model,
        tokenizer,
        generator=generator(config.seed, "weights"),
        gradient_checkpointing=config.actor.gradient_checkpointing,
        packed=config.packed,
        lora=config.actor.lora,
    )
    sampler = sampler_for(actor, tokenizer, config.rollout.sampling, memory_gib=config.rollout.memory_gib)
    text = longest(prompts.rows, None if test is None else test.rows, new_tokens=sampler.max_new_tokens)
    text.expect_room(actor)
    ranks = place.runtime.world_size
    reward = load_reward(
        config.reward,
        engine=config.inference_engine or config.engine,
        actor=actor,
        tokenizer=tokenizer,
        longest=text,
        micro_rows=exact_div(config.micro_batch_size, ranks, "micro_batch_size", "ranks"),
        packed=config.packed,
    )
    reference = _reference(config, actor, tokenizer, text)
    critic = _critic(config, actor, tokenizer, text)
    pretraining = _pretraining(config, actor, tokenizer, place.runtime)
    plain, average = copy_for_sampling(actor, config.engine), _average(config, actor)
    engine = config.engine.train(actor, config.actor.optimizer(actor), "actor")
    trainer = PolicyGradientTrainer(
        models=Models(
            actor=engine,
            critic=critic,
            reference=reference or (own_reference(engine) if config.measure_kl else None),
            reward=reward,
            sampling_actor=sampling_actor(engine, plain),
            average=average,
        ),
        algorithm=config.algorithm,
        sampler=sampler,
        train=prompts,
        test=test,
        sizes=Sizes(
            prompts=config.rollout.prompts,
            samples=config.rollout.samples,
            micro_batch=config.micro_batch_size,
            micro_batch_tokens=config.micro_batch_tokens,
        ),
        exact_kl=config.rollout.exact_kl,
        schedule=config.schedule,
        total=config.rollouts,
        seed=config.seed,
        runtime=place.runtime,
        export=exporter(engine, tokenizer, average),
        pretraining=pretraining,
        non_finite=config.non_finite,
    )
    train_and_draw(trainer, folder, config)


def _reference(
    config: RL, actor: Actor, tokenizer: PreTrainedTokenizerBase, text: Longest
) -> Inference | None:
    """The frozen policy that the KL is measured to; None without a KL, or where the actor has it inside."""
    source = config.reference_start
    if source is None:
        return None
    reference = load_actor(
        source, tokenizer, generator=generator(config.seed, "weights"), packed=config.packed
    )
    expect_same_vocabulary(actor, reference)
    text.expect_room(reference)
    return (config.inference_engine or config.engine).inference(reference, "reference")


def _pretraining(
    config: RL, actor: Actor, tokenizer: PreTrainedTokenizerBase, runtime: Runtime
) -> Pretraining | None:
    """The texts of PPO-ptx."""
    if config.pretraining.data.path is None:
        return None
    rows = config.pretraining.data.load(tokenizer)
    longest(rows).expect_room(actor)
    return Pretraining(
        rows=rows,
        batch_size=config.pretraining.batch_size,
        cut=Cut.shared(
            config.micro_batch_size, config.micro_batch_tokens, runtime.world_size, packed=config.packed
        ),
        seed=config.seed,
        runtime=runtime,
    )


def _average(config: RL, actor: Actor) -> WeightAverage[Actor] | None:
    """An average of the actor's weights, in a copy taken before an engine splits them."""
    if config.actor.ema_decay is None:
        return None
    return WeightAverage(float32_copy(actor), config.actor.ema_decay)


def _critic(config: RL, actor: Actor, tokenizer: PreTrainedTokenizerBase, text: Longest) -> Engine | None:
    """The value model, started from a reward model: trunk and head (numerics D34)."""
    if config.critic_start is None:
        return None
    source, fresh_head = config.critic_start
    critic = load_scalar_model(
        source,
        tokenizer,
        generator=generator(config.seed, "critic"),
        fresh_head=fresh_head,
        gradient_checkpointing=config.critic.gradient_checkpointing,
        packed=config.packed,
        lora=config.critic.lora,
    )
    expect_same_vocabulary(actor, critic)
    text.expect_room(critic)
    engine = config.critic.engine or config.engine
    return engine.train(critic, config.critic.optimizer(critic), "critic")


COMMAND = Command(schema=RL, job=train)
