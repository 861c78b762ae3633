"""What sampling and scoring responses take, and ``rlhf generate``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from rlhf.batch import PromptBatch
from rlhf.config import Generate
from rlhf.data.tokenizers import load_tokenizer
from rlhf.distributed.engine_config import EngineConfig
from rlhf.models.actor import Actor
from rlhf.models.decode_cache import our_attention
from rlhf.models.scalar import ScalarModel
from rlhf.models.shapes import actor_shape, scalar_shape
from rlhf.models.sources import Pretrained
from rlhf.models.static_cache import repeats
from rlhf.planning.memory_plan import MemoryPlan, Term
from rlhf.planning.passes import Texts, logprobs, values
from rlhf.planning.roles import AnyFrozen, Frozen, Machine, forward_bytes
from rlhf.planning.rows import Rollouts, filler_prompts, loaded
from rlhf.planning.updates import add_loading
from rlhf.rewards.sources import (
    Implicit,
    LowestOfEnsemble,
    RewardEnsemble,
    RewardMixture,
    RewardModel,
    RewardSource,
)
from rlhf.rollout.decoding import Decoding
from rlhf.rollout.graphs import Graphs
from rlhf.rollout.memory import Plan
from rlhf.trainers.micro_batches import Cut


def generate(config: Generate, plan: MemoryPlan, machine: Machine) -> None:
    """Responses to a file of prompts, as many prompts at a time as make up ``micro_batch_size`` rows."""
    if machine.ranks > 1:
        raise ValueError(f"rlhf generate runs as one process, not as {machine.ranks} ranks")
    prompts = loaded(
        config.prompts,
        lambda: config.prompts.load(load_tokenizer(config.model.folder)),
        lambda: filler_prompts(config.prompts),
        plan.notes,
    )
    drawn = config.samples * config.best_of
    at_once = min(max(config.micro_batch_size // drawn, 1), len(prompts))
    actor = Frozen("policy", actor_shape(config.model, None), None, machine)
    rewards = reward_models(config.reward, None, machine, packed=False)
    order = replace(prompts, prompts=sorted(prompts.prompts, key=len, reverse=True))
    batch = order.batch(torch.arange(at_once), samples=drawn)
    always = [*actor.always(), *(term for model in rewards for term in model.always())]
    add_loading(plan, [actor, *rewards])
    plan.add("sample", always, sampling_terms(actor.wrapper, batch, config.decoding, machine))
    rollouts = Rollouts(
        prompts=order,
        count=at_once,
        samples=drawn,
        new_tokens=config.decoding.max_new_tokens,
        seed=0,
        ranks=1,
    )
    if rewards:
        texts = rollouts.texts(batch, range(min(config.micro_batch_size, len(batch))))
        plan.add("score", always, scoring_terms(rewards, texts, machine))
    plan.notes.append(
        f"the longest prompts come first: {len(batch)} rows of up to {int(batch.mask.sum(1).max())} and "
        f"{config.decoding.max_new_tokens} tokens at a time"
    )


def sampling_terms(
    actor: Actor,
    prompts: PromptBatch,
    decoding: Decoding,
    machine: Machine,
    *,
    memory_gib: float | None = None,
) -> list[Term]:
    """Of rows that are decoded together (`rlhf.rollout.memory`): what is there all the time, and the rest."""
    captured = machine.on_gpu and repeats(actor.model)
    columns = int(prompts.mask.sum(1).max()) + decoding.max_new_tokens
    if captured:
        columns = Graphs().columns(actor, columns)
    with torch.no_grad(), our_attention(actor.eval().model):
        found = Plan.of(
            actor,
            prompts,
            decoding,
            columns,
            captured=captured,
            device=torch.device(machine.device),
        )
    rows = len(prompts)
    if memory_gib is not None:
        rows = min(rows, found.rows_within(max(int(memory_gib * 2**30), 1)))
    kept = found.kept(rows)
    return [
        Term(owner="sampling", part="keys, values", bytes=kept),
        Term(owner="sampling", part="logits, prompts", bytes=found.bytes(rows) - kept),
    ]


def reward_models(
    source: RewardSource, engine: EngineConfig | None, machine: Machine, *, packed: bool
) -> list[AnyFrozen]:
    """The models of a reward; functions, verifiers and endpoints have none here."""
    return [
        AnyFrozen(name, shape, engine, machine)
        for name, shape in _shapes(source, packed=packed, name="reward")
    ]


def _shapes(source: RewardSource, *, packed: bool, name: str) -> Iterator[tuple[str, Actor | ScalarModel]]:
    if isinstance(source, RewardEnsemble | LowestOfEnsemble):
        for number, path in enumerate(source.paths, 1):
            yield from _shapes(RewardModel(path=path), packed=packed, name=f"{name} {number}")
    elif isinstance(source, RewardMixture):
        for part, inner in source.parts.items():
            yield from _shapes(inner, packed=packed, name=f"{name} {part}")
    elif isinstance(source, Implicit):
        for role, path in (("policy", source.policy), ("reference", source.reference)):
            yield f"{name}'s {role}", actor_shape(Pretrained(path=path), None, packed=packed)
    elif isinstance(source, RewardModel):
        yield name, scalar_shape(Pretrained(path=source.path), None, fresh_head=False, packed=packed)


def scoring_terms(models: list[AnyFrozen], texts: Texts, machine: Machine) -> list[Term]:
    """One model after the other."""
    held = 0
    for model in models:
        run: Callable[..., object] = logprobs if isinstance(model.wrapper, Actor) else values
        held = max(held, forward_bytes(partial(run, model.wrapper, texts, on_gpu=machine.on_gpu)))
    gathered = [term for model in models for term in model.forward()]
    return [*gathered, Term(owner="passes", part="activations, head", bytes=held)]


def first_rows(rollouts: Rollouts, prompts: PromptBatch, rows: int) -> Texts:
    """A pass of a reward model: rows in their order, as many as it takes, the fullest of them."""
    cut = Cut(rows=rows, packed=True)
    lengths = prompts.mask.sum(1)
    parts = cut(lengths)
    return rollouts.texts(prompts, max(parts, key=lambda part: int(lengths[part].sum())))
