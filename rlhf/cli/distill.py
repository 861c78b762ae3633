"""``rlhf distill``: on-policy distillation, DAgger with a language model for the expert."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf.cli.application import Command, Place
from rlhf.cli.pieces import (
    copy_for_sampling,
    exporter,
    open_folder,
    prompts_of,
    sampler_for,
    sampling_actor,
    tokenizer_of,
    train_and_draw,
)
from rlhf.cli.room import Longest, longest
from rlhf.config import Distill
from rlhf.data.tokenizers import load_tokenizer
from rlhf.models.actor import Actor
from rlhf.models.loading import expect_same_vocabulary, load_actor
from rlhf.seeding import generator
from rlhf.trainers.collection import Sizes
from rlhf.trainers.distillation import DistillationTrainer, Pair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def train(config: Distill, place: Place) -> None:
    """Build the stage from its configuration and run it."""
    folder = open_folder(config, place)
    tokenizer = tokenizer_of(config.student)
    expect_same_tokens(config.teacher.path, config.teacher.folder, tokenizer)
    prompts = prompts_of(config.prompts, tokenizer)
    test = None if config.test_prompts.path is None else prompts_of(config.test_prompts, tokenizer)
    student = load_actor(
        config.student,
        tokenizer,
        generator=generator(config.seed, "weights"),
        gradient_checkpointing=config.gradient_checkpointing,
        packed=config.packed,
        lora=config.lora,
    )
    sampler = sampler_for(student, tokenizer, config.rollout.sampling, memory_gib=config.rollout.memory_gib)
    text = longest(prompts.rows, None if test is None else test.rows, new_tokens=sampler.max_new_tokens)
    text.expect_room(student)
    teacher = _teacher(config, student, tokenizer, text)
    writes = any(config.mixture(number) > 0 for number in range(config.rounds))
    plain = copy_for_sampling(student, config.engine)
    writer = copy_for_sampling(teacher, config.engine) if writes else None
    engine = config.engine.train(student, config.optimizer(student), "student")
    trainer = DistillationTrainer(
        models=Pair(
            student=engine,
            teacher=config.engine.inference(teacher, "teacher"),
            sampling_student=sampling_actor(engine, plain),
            sampling_teacher=writer,
        ),
        divergence=config.divergence,
        mixture=config.mixture,
        temperature=config.temperature,
        sampler=sampler,
        train=prompts,
        test=test,
        sizes=Sizes(
            prompts=config.rollout.prompts,
            samples=config.rollout.samples,
            micro_batch=config.micro_batch_size,
            micro_batch_tokens=config.micro_batch_tokens,
        ),
        keep_rounds=config.keep_rounds,
        steps=config.steps,
        batch_size=config.batch_size,
        schedule=config.schedule,
        total=config.rounds,
        seed=config.seed,
        runtime=place.runtime,
        export=exporter(engine, tokenizer),
        non_finite=config.non_finite,
    )
    train_and_draw(trainer, folder, config)


def _teacher(config: Distill, student: Actor, tokenizer: PreTrainedTokenizerBase, text: Longest) -> Actor:
    """The policy that is imitated, with positions for the longest text."""
    teacher = load_actor(
        config.teacher, tokenizer, generator=generator(config.seed, "unused"), packed=config.packed
    )
    expect_same_vocabulary(student, teacher)
    text.expect_room(teacher)
    return teacher


def expect_same_tokens(path: str, folder: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a teacher whose next-token distributions are over other tokens than the student's.

    Raises:
        ValueError: its tokenizer is another one, or it has none; names how many tokens differ.
    """
    own, given = load_tokenizer(folder).get_vocab(), tokenizer.get_vocab()
    different = {token for token, number in own.items() ^ given.items()}
    if different:
        raise ValueError(
            f"the teacher {path} has another tokenizer than the student, and distillation compares token by "
            f"token: {len(different)} are in one alone or numbered otherwise, such as {min(different)!r}"
        )


COMMAND = Command(schema=Distill, job=train)
