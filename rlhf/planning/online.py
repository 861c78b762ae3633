"""What online reinforcement learning takes: ``rlhf rl``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from rlhf.config import RL
from rlhf.data.tokenizers import load_tokenizer
from rlhf.models.actor import Actor
from rlhf.models.lora import without_adapters
from rlhf.models.static_cache import repeats
from rlhf.ops.logprobs import exact_kl
from rlhf.planning.cast import Cast, cast_of
from rlhf.planning.held import Held
from rlhf.planning.memory_plan import MemoryPlan, Term
from rlhf.planning.passes import Texts, logprobs, swept_loss, values
from rlhf.planning.roles import AnyFrozen, AnyTrained, Machine
from rlhf.planning.rows import Rollouts, filler_prompts, loaded
from rlhf.planning.sampling import first_rows, sampling_terms, scoring_terms
from rlhf.planning.updates import Loss, add_loading, add_update, add_writing, forget, rehearsed
from rlhf.trainers.micro_batches import Cut, exact_div


def rl(config: RL, plan: MemoryPlan, machine: Machine) -> None:
    """A rollout's sampling, scoring and updates."""
    cast, rollouts = cast_of(config, machine), _rollouts(config, plan, machine)
    add_loading(plan, [cast.actor, *cast.fixed, *cast.learners[1:]], cast.copies)
    always = _add_sampling(config, plan, machine, cast, rollouts)
    measured = _Measured(config, machine, cast, rollouts)
    plan.add("logprobs", always, measured.gathered(), [_passes(measured.scoring())])
    add_update(plan, always, cast.learners, measured.updating())
    add_writing(plan, always, cast.learners)
    texts = measured.texts
    plan.notes.append(
        f"the fullest pass of the first rollouts: {texts.count} tokens of {len(texts.tokens)} responses, "
        f"each of {rollouts.new_tokens} tokens, the most there can be"
    )


def _rollouts(config: RL, plan: MemoryPlan, machine: Machine) -> Rollouts:
    prompts = loaded(
        config.prompts,
        lambda: config.prompts.load(load_tokenizer(config.actor.model.folder)),
        lambda: filler_prompts(config.prompts),
        plan.notes,
    )
    exact_div(config.rollout.prompts, machine.ranks, "rollout.prompts", "ranks")
    return Rollouts(
        prompts=prompts,
        count=config.rollout.prompts,
        samples=config.rollout.samples,
        new_tokens=config.rollout.sampling.max_new_tokens,
        seed=config.seed,
        ranks=machine.ranks,
    )


def _add_sampling(
    config: RL, plan: MemoryPlan, machine: Machine, cast: Cast, rollouts: Rollouts
) -> list[Term]:
    """The responses of a rollout and their scores; those of an evaluation are sampled all at once.

    Returns:
        What is held from then on: a GPU, whose steps are captured, keeps the caches.
    """
    always, prompts = cast.always(), rollouts.longest_prompts(config.rollouts)
    sample = partial(
        sampling_terms,
        cast.actor.wrapper,
        decoding=config.rollout.sampling,
        machine=machine,
        memory_gib=config.rollout.memory_gib,
    )
    cache, rest = sample(prompts)
    plan.add("sample", always, [cache, rest])
    if machine.on_gpu and repeats(cast.actor.wrapper.model):
        always = [*always, cache]
    rows = exact_div(config.micro_batch_size, machine.ranks, "micro_batch_size", "ranks")
    if cast.rewards:
        texts = first_rows(rollouts, prompts, rows)
        plan.add("score", always, scoring_terms(cast.rewards, texts, machine))
    if config.test_prompts.path is not None:
        test = loaded(
            config.test_prompts,
            lambda: config.test_prompts.load(load_tokenizer(config.actor.model.folder)),
            lambda: filler_prompts(config.test_prompts),
            plan.notes,
        )
        plan.add("evaluation", cast.always(), sample(test.batch(torch.arange(len(test) // machine.ranks))))
    cast.actor.wrapper.train()
    return always


def _passes(size: int) -> Term:
    return Term(owner="passes", part="activations, head", bytes=size)


class _Measured:
    """Passes over a rollout: those that score it, and those that learn from it."""

    def __init__(self, config: RL, machine: Machine, cast: Cast, rollouts: Rollouts) -> None:
        self._config, self._cast, self._on_gpu = config, cast, machine.on_gpu
        algorithm = config.algorithm
        cut = Cut.shared(
            config.micro_batch_size, config.micro_batch_tokens, machine.ranks, packed=config.packed
        )
        self.texts, whole = rollouts.fullest(cut, config.rollouts)
        of_minibatch = exact_div(
            rollouts.rows, algorithm.minibatches, "rows per rank", "algorithm.minibatches"
        )
        self._learnt, self._passes = rollouts.fullest(cut, config.rollouts, of_minibatch)
        self._with_reference = config.measure_kl
        self._with_kl = config.rollout.exact_kl and config.measure_kl
        self._live = algorithm.starts_whole and whole == 1 and not self._with_kl

    def gathered(self) -> list[Term]:
        """Whole weights of models that are split."""
        cast = self._cast
        models: list[AnyTrained | AnyFrozen] = [*cast.learners]
        if cast.reference is not None:
            models.append(cast.reference)
        return [term for model in models for term in model.forward()]

    def scoring(self) -> int:
        """The most that the passes over a rollout hold."""
        with Held() as held:
            kept = self._scored()
        del kept
        return held.peak

    def _scored(self) -> tuple[Tensor, ...]:
        """What the policy says, with its graph where the first update goes on from it."""
        cast, texts = self._cast, self.texts
        own = self._logprobs(cast.actor.wrapper, texts, graph=self._live)
        if self._with_reference:
            off = nullcontext() if cast.reference else without_adapters(cast.actor.wrapper)
            reference = cast.actor if cast.reference is None else cast.reference
            with off:
                theirs = self._logprobs(reference.wrapper, texts, graph=False)
            if self._with_kl:
                exact_kl(own[1].detach(), theirs[1], self._config.rollout.sampling.temperature)
        if cast.critic is not None:
            del own[1:]
            with torch.no_grad():
                values(cast.critic.wrapper, texts, on_gpu=self._on_gpu)
        return tuple(own[:1])

    def _logprobs(self, actor: Actor, texts: Texts, *, graph: bool) -> list[Tensor]:
        with torch.set_grad_enabled(graph):
            return list(logprobs(actor, texts, on_gpu=self._on_gpu, logits=self._with_kl))

    def updating(self) -> int:
        """The most that the passes of a minibatch hold."""
        losses: list[Loss] = [self._actor_loss]
        critic = self._cast.critic
        if critic is not None:
            losses.append(lambda: values(critic.wrapper, self._learnt, on_gpu=self._on_gpu))
        return max(rehearsed(losses, self._cast.learners, self._passes), self._going_on(losses))

    def _going_on(self, losses: list[Callable[[], Tensor]]) -> int:
        """The same where the first update goes on from the pass that scored the rollout."""
        if not self._live:
            return 0
        with Held() as held:
            (own,) = self._scored()
            held.begin()
            own.sum().backward()
            for loss in losses[1:]:
                loss().sum().backward()
        forget(self._cast.learners)
        return held.peak

    def _actor_loss(self) -> Tensor:
        algorithm, actor = self._config.algorithm, self._cast.actor.wrapper
        if algorithm.one_pass:
            return swept_loss(actor, self._learnt, on_gpu=self._on_gpu)
        found = logprobs(actor, self._learnt, on_gpu=self._on_gpu, logits=algorithm.kl.needs_exact)
        if not algorithm.kl.needs_exact:
            return found[0]
        reference = self._cast.actor if self._cast.reference is None else self._cast.reference
        with torch.no_grad():
            theirs = logprobs(reference.wrapper, self._learnt, on_gpu=self._on_gpu, logits=True)
        return exact_kl(found[1], theirs[1], self._config.rollout.sampling.temperature).sum() + found[0].sum()
