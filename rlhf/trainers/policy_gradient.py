"""Online reinforcement learning: sample, score, estimate advantages, update.

One trainer for every policy-gradient method; what tells them apart is the ``PolicyGradient`` bundle of
components (``rlhf/algorithms/policy_gradient.py``). Read ``PolicyGradientTrainer.step`` first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlhf.algorithms.policy_gradient import PolicyGradient
from rlhf.batch import Experience, PromptBatch, Rollout
from rlhf.data.loaded import PromptSet
from rlhf.data.order import batch_indices, rank_share
from rlhf.distributed.collectives import all_sum
from rlhf.distributed.engine import Engine
from rlhf.distributed.engine_config import Inference
from rlhf.distributed.runtime import Runtime
from rlhf.distributed.watch import WATCH
from rlhf.metrics import Clock, Metrics
from rlhf.models.actor import Actor
from rlhf.models.scalar import state_values
from rlhf.ops.logprobs import exact_kl
from rlhf.rewards.mixture import named_scores, score_names
from rlhf.rewards.reward import NotFinite, Reward
from rlhf.rollout.noise import row_noise
from rlhf.rollout.sampler import Sampler
from rlhf.rollout.texts import RolloutTexts
from rlhf.seeding import generator
from rlhf.trainers import rollout_metrics
from rlhf.trainers.faults import SKIPPED, Faults, NonFinite, Row
from rlhf.trainers.ledger import Ledger
from rlhf.trainers.micro_batches import by_length, exact_div
from rlhf.trainers.progress import load_progress, save_progress
from rlhf.trainers.rollout_metrics import Measured
from rlhf.trainers.schedules import Schedule

SHOWN = 4
"""Responses of each rollout, of rank 0, that go to ``samples.jsonl``."""

NAMES = {
    "old_logprobs": "actor's log-prob",
    "entropies": "actor's entropy",
    "ref_logprobs": "reference's log-prob",
    "exact_kl": "exact KL to the reference",
    "rewards": "reward",
    "old_values": "critic's value",
    "advantages": "advantage",
    "returns": "return",
}
"""What a fault calls the tensors of a rollout."""


@dataclass(kw_only=True, slots=True)
class Models:
    """The four models of an online run."""

    actor: Engine
    critic: Engine | None
    reference: Inference
    reward: Reward
    sampling_actor: Callable[[], Actor]
    """The actor's present weights in a plain module, gathered once per call where they are sharded."""


@dataclass(kw_only=True, slots=True)
class Prompts:
    """A prompt set, encoded and as text."""

    rows: PromptSet
    texts: RolloutTexts


@dataclass(kw_only=True, slots=True)
class Sizes:
    """Rows, counted over all ranks."""

    prompts: int
    """Prompts of one rollout."""
    samples: int
    """Responses sampled for each prompt."""
    micro_batch: int
    """Rows of one forward and backward pass."""


@dataclass(kw_only=True, slots=True)
class State:
    """Everything that moves besides the engines; the random streams are functions of it and the seed."""

    kl_coef: float
    rollouts: int = 0
    actor_steps: int = 0


class PolicyGradientTrainer:
    """One rollout and its updates a call."""

    def __init__(
        self,
        *,
        models: Models,
        algorithm: PolicyGradient,
        sampler: Sampler,
        train: Prompts,
        test: Prompts | None,
        sizes: Sizes,
        exact_kl: bool,
        schedule: Schedule,
        total: int,
        seed: int,
        runtime: Runtime,
        export: Callable[[Path], None],
        non_finite: NonFinite = NonFinite.stop,
    ) -> None:
        self.models, self.algorithm, self.sampler = models, algorithm, sampler
        self.train, self.test, self.schedule, self.exact_kl = train, test, schedule, exact_kl
        self.total, self.seed, self.runtime, self.export = total, seed, runtime, export
        ranks = runtime.world_size
        exact_div(sizes.prompts, ranks, "rollout.prompts", "ranks")
        rows = exact_div(sizes.prompts * sizes.samples, ranks, "rollout.prompts × rollout.samples", "ranks")
        self.minibatch_rows = exact_div(rows, algorithm.minibatches, "rows per rank", "algorithm.minibatches")
        self.micro_rows = exact_div(sizes.micro_batch, ranks, "micro_batch_size", "ranks")
        if test is not None:
            exact_div(len(test.rows), ranks, "rows of test_prompts", "ranks")
        self.sizes = sizes
        self.state = State(kl_coef=algorithm.kl.initial_coef)
        self.faults = Faults(non_finite)
        for engine in (models.actor, models.critic):
            if engine is not None:  # transformers recomputes activations in train() mode only; dropout is 0
                engine.module.train()
        self._samples: list[dict[str, object]] = []
        self._parts: dict[str, Tensor] = {}  # (B,) each: the parts of a mixture, of the rollout last scored

    @property
    def done(self) -> int:
        """Rollouts finished."""
        return self.state.rollouts

    def step(self) -> Metrics:
        """One iteration: sample, score, estimate advantages, update."""
        clock, metrics = Clock(WATCH.enter), Metrics()
        with clock.phase("sample"):
            rollout = self.sample(self.next_prompts())
        with clock.phase("score"):
            scores = self.score(rollout, self.train)
        with clock.phase("logprobs"):
            measured = self.measure(rollout, scores)
            values = self.values(rollout)
        with clock.phase("advantages"):
            experience = self.estimate(measured, values)
            usable = self.usable(measured, experience, metrics)
        if usable:
            with clock.phase("update"):
                self.scale_learning_rates(metrics)
                for number, minibatch in enumerate(self.minibatches(experience)):
                    self.update(minibatch, metrics, on_policy=number == 0)
            self.finish(experience, measured, metrics)
        self.faults.report(metrics)
        self.state.rollouts += 1
        tokens = int(rollout.attention_mask.sum())
        clock.report(metrics, tokens, len(rollout), self.runtime.world_size)
        return metrics

    @property
    def place(self) -> str:
        """The present step, for messages."""
        return f"rollout {self.state.rollouts + 1}"

    def next_prompts(self) -> PromptBatch:
        """This rank's share of the next prompts, each repeated once per sample."""
        first = self.state.rollouts * self.sizes.prompts
        index = batch_indices(first, self.sizes.prompts, len(self.train.rows), self.seed)
        drawn = first + torch.arange(self.sizes.prompts)  # the group: a number for each prompt drawn so far
        rank, ranks = self.runtime.rank, self.runtime.world_size
        return self.train.rows.batch(
            rank_share(index, rank, ranks), samples=self.sizes.samples, groups=rank_share(drawn, rank, ranks)
        )

    def sample(self, prompts: PromptBatch, stream: str = "sampling") -> Rollout:
        """Responses to ``prompts``; a row's randomness depends on seed, group and sample alone."""
        noise = row_noise(prompts.group, self.sampler.max_new_tokens, self.seed, stream)
        actor = self.models.sampling_actor()
        return self.sampler.sample(actor, prompts.to(self.runtime.device), noise.to(self.runtime.device))

    def score(self, rollout: Rollout, prompts: Prompts) -> Tensor:
        """(B,) scores; what is not finite is noted for `usable`."""
        try:
            scores = named_scores(self.models.reward, rollout, prompts.texts)
        except NotFinite as error:
            self.faults.note(str(error))
            nothing = torch.zeros(len(rollout), device=rollout.tokens.device)
            scores = dict.fromkeys(score_names(self.models.reward), nothing)
        self._parts = {name: part for name, part in scores.items() if name != "score"}
        return scores["score"]

    @torch.no_grad()
    def measure(self, rollout: Rollout, scores: Tensor) -> Measured:
        """Log-probs of actor and reference, and the reward of each token."""
        old, entropies, ref, exact_kl = self._by_rows(rollout, self._measure)
        rewards = self.algorithm.shape(scores, rollout.ended, old, ref, rollout.mask, self.state.kl_coef)
        return Measured(
            rollout=rollout,
            scores=scores,
            rewards=rewards,
            old_logprobs=old,
            ref_logprobs=ref,
            entropies=entropies,
            exact_kl=exact_kl if self.exact_kl else None,
        )

    @torch.no_grad()
    def values(self, rollout: Rollout) -> Tensor | None:
        """(B, T) the critic's values before the updates; None without a critic."""
        if self.models.critic is None:
            return None
        return self._by_rows(rollout, lambda part: (self._critic_values(part),))[0]

    def estimate(self, measured: Measured, values: Tensor | None) -> Experience:
        """Advantages and returns, fixed for all updates of this rollout."""
        rollout = measured.rollout
        estimate = self.algorithm.estimate(measured.rewards, values, rollout.mask, rollout.group, all_sum)
        return Experience(
            rollout=rollout,
            old_logprobs=measured.old_logprobs,
            ref_logprobs=measured.ref_logprobs,
            advantages=estimate.advantages,
            returns=estimate.returns,
            old_values=values,
        )

    def _measure(self, part: Rollout) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(b, T) each: log-probs and entropies of the actor, log-probs of the reference, exact KL or 0."""
        actor, reference, temperature = self.models.actor, self.models.reference, self.sampler.temperature
        inputs = (part.tokens, part.attention_mask, part.prompt_mask.shape[1], temperature)
        if not self.exact_kl:
            old, ref = actor(*inputs), reference(*inputs)
            return old.logprobs, old.entropies, ref.logprobs, torch.zeros_like(old.logprobs)
        old, ref = actor(*inputs, full=True), reference(*inputs, full=True)
        kl = torch.where(part.mask, exact_kl(old.logits, ref.logits, temperature), 0.0)
        return old.logprobs, old.entropies, ref.logprobs, kl

    def _critic_values(self, part: Rollout) -> Tensor:
        """(b, T) values of the state before each response token (numerics D9)."""
        assert self.models.critic is not None
        return state_values(
            self.models.critic(part.tokens, part.attention_mask), part.prompt_mask.shape[1], part.mask
        )

    def _by_rows(
        self, rollout: Rollout, measure: Callable[[Rollout], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """(B, T) each: what ``measure`` says of every row, 0 on padding.

        Rows of like length share a forward pass, so that little of it is padding.
        """
        columns: tuple[Tensor, ...] = ()
        for rows in by_length(rollout.attention_mask.sum(1), self.micro_rows):
            measured = measure(rollout.rows(rows).trimmed())
            columns = columns or tuple(torch.zeros_like(rollout.sampler_logprobs) for _ in measured)
            for column, part in zip(columns, measured, strict=True):
                column[rows, : part.shape[1]] = part
        return columns

    def usable(self, measured: Measured, experience: Experience, metrics: Metrics) -> bool:
        """Whether every number of the rollout is finite, on every rank; if not, nothing is learnt from it.

        Raises:
            FloatingPointError: one is not, and the run is to stop.
        """
        self._samples = []
        self._look(measured, self.train)
        row, mask = _named(experience.rollout, self.train), experience.rollout.mask
        for name in ("old_values", "advantages", "returns"):
            values: Tensor | None = getattr(experience, name)
            if values is not None:
                self.faults.look(NAMES[name], values, row, mask=mask)
        usable = self.faults.none(self.place)
        if self.faults.skips:
            metrics.value("faults/skipped_rollouts", float(not usable))
        return usable

    def _look(self, measured: Measured, prompts: Prompts) -> None:
        """Note what is not finite, in the order in which it was computed."""
        row, mask = _named(measured.rollout, prompts), measured.rollout.mask
        self.faults.look("sampler's log-prob", measured.rollout.sampler_logprobs, row, mask=mask)
        self.faults.look("score", measured.scores, row)
        for name in ("old_logprobs", "entropies", "ref_logprobs", "exact_kl", "rewards"):
            values: Tensor | None = getattr(measured, name)
            if values is not None:
                self.faults.look(NAMES[name], values, row, mask=mask)

    def scale_learning_rates(self, metrics: Metrics) -> None:
        """Set once per rollout, for all parameter groups (numerics D43)."""
        factor = self.schedule(self.state.rollouts, self.total)
        self.models.actor.scale_lr(factor)
        metrics.value("actor/lr", self.models.actor.lr)
        if self.models.critic is not None:
            self.models.critic.scale_lr(factor)
            metrics.value("critic/lr", self.models.critic.lr)

    def minibatches(self, experience: Experience) -> Iterator[Experience]:
        """Every row once an epoch, in a fresh order (numerics D41).

        The rows of a minibatch stand in the order of the rollout: where it is the whole rollout, its
        micro-batches are those that were scored, and the first ratio is exactly 1 (numerics D15).
        """
        for epoch in range(self.algorithm.epochs):
            stream = generator(self.seed, "minibatches", self.state.rollouts, epoch, self.runtime.rank)
            order = torch.randperm(len(experience), generator=stream)
            for rows in order.split(self.minibatch_rows):
                yield experience.rows(rows.sort().values)

    def update(self, minibatch: Experience, metrics: Metrics, *, on_policy: bool = False) -> None:
        """One optimiser step of the actor and one of the critic, from the whole minibatch's gradients.

        Args:
            minibatch: this rank's rows.
            metrics: receives its measurements, unless a step had to be skipped.
            on_policy: no parameter has moved since the rows were scored, so the ratio must be 1.

        Raises:
            FloatingPointError: a number is not finite and the run is to stop, or the first ratio is not 1.
        """
        weights = self.algorithm.aggregation(minibatch.rollout.mask, all_sum)  # (b, T)
        loss, found, ledger = 0.0, Metrics(), Ledger() if on_policy else None
        for rows in by_length(minibatch.rollout.attention_mask.sum(1), self.micro_rows):
            part = minibatch.rows(rows).trimmed()
            share = weights[rows, : part.rollout.mask.shape[1]]
            loss += self._actor_backward(part, share, found, ledger)
            if self.models.critic is not None:
                self._critic_backward(part, share, found)
        found.add("loss", loss, 1 / self.runtime.world_size)  # the step's loss is a sum over ranks
        if ledger is not None:
            ledger.close(metrics, _dtype(self.models.actor), self.place)
        self._step_engines(found, metrics)

    def _step_engines(self, found: Metrics, metrics: Metrics) -> None:
        """Move actor and critic; what a minibatch measured is left out when a step of it was skipped."""
        skipped = False
        for engine in (self.models.actor, self.models.critic):
            if engine is None:
                continue
            norm = self.faults.step(engine, self.place)
            if norm is None:
                skipped = True
                continue
            found.value(f"{engine.name}/grad_norm", norm)
            self.state.actor_steps += engine is self.models.actor
        if not skipped:
            metrics.merge(found)

    def _actor_backward(
        self, part: Experience, weights: Tensor, metrics: Metrics, ledger: Ledger | None
    ) -> float:
        rollout, row = part.rollout, _named(part.rollout, self.train)
        first = rollout.prompt_mask.shape[1]
        logprobs = self.models.actor(
            rollout.tokens, rollout.attention_mask, first, self.sampler.temperature
        ).logprobs
        token_loss = self.algorithm.token_loss(logprobs, part, self.state.kl_coef)
        loss = (weights * self.faults.loss("actor's loss", token_loss, row, model="actor")).sum()
        self.models.actor.backward(loss)
        if ledger is not None:
            ledger.add(logprobs.detach(), part, row)
        rollout_metrics.policy_moves(self.algorithm.policy_loss, logprobs.detach(), part, metrics)
        return float(loss.detach())

    def _critic_backward(self, part: Experience, weights: Tensor, metrics: Metrics) -> None:
        assert self.models.critic is not None
        assert self.algorithm.value_loss is not None
        assert part.old_values is not None
        assert part.returns is not None
        values = self._critic_values(part.rollout)
        loss = self.algorithm.value_loss(values, part.old_values, part.returns, part.rollout.mask)
        row = _named(part.rollout, self.train)
        loss = self.faults.loss("critic's loss", loss, row, model="critic")
        self.models.critic.backward((weights * loss).sum())
        metrics.mean("critic/loss", loss, part.rollout.mask)

    def finish(self, experience: Experience, measured: Measured, metrics: Metrics) -> None:
        """Report the rollout, keep a few texts, move the KL coefficient."""
        mean_kl = rollout_metrics.rollout(measured, metrics)
        rollout_metrics.parts(self._parts, metrics)
        rollout_metrics.critic(experience, metrics)
        metrics.value("actor/kl_coef", self.state.kl_coef)
        metrics.value("actor/steps", self.state.actor_steps)
        numbers = {"score": measured.scores, "kl": rollout_metrics.sequence_kl(measured)}
        self._samples = self.train.texts.samples(experience.rollout, numbers, SHOWN)
        rows = len(experience) * self.runtime.world_size
        self.state.kl_coef = self.algorithm.kl.next_coef(self.state.kl_coef, mean_kl, rows)

    def evaluate(self) -> Metrics:
        """Score and KL of the present policy on held-out prompts, one response each."""
        metrics = Metrics()
        if self.test is None:
            return metrics
        rows = torch.arange(len(self.test.rows))
        index = rank_share(rows, self.runtime.rank, self.runtime.world_size)
        rollout = self.sample(self.test.rows.batch(index, samples=1, groups=index), "evaluation")
        measured, found = self.measure(rollout, self.score(rollout, self.test)), Metrics()
        self._look(measured, self.test)
        rollout_metrics.rollout(measured, found)
        rollout_metrics.parts(self._parts, found)
        metrics.merge(found, "eval/")
        return self.faults.evaluation(metrics, f"evaluation after rollout {self.done}")

    def samples(self) -> list[dict[str, object]]:
        """A few responses of the last rollout with score and KL."""
        return self._samples

    def headline(self, metrics: Mapping[str, float]) -> str:
        """Score, KL and length; of a rollout that was skipped there are none."""
        if "reward/score" not in metrics:
            return SKIPPED
        return (
            f"score {metrics['reward/score']:.2f}, kl {metrics['actor/kl_reference']:.2f}, "
            f"length {metrics['rollout/length']:.1f}"
        )

    def save(self, folder: Path) -> None:
        """Both engines and the state."""
        self.models.actor.save(folder / "actor")
        if self.models.critic is not None:
            self.models.critic.save(folder / "critic")
        save_progress(folder, asdict(self.state))

    def load(self, folder: Path) -> None:
        """Continue exactly."""
        self.models.actor.load(folder / "actor")
        if self.models.critic is not None:
            self.models.critic.load(folder / "critic")
        saved = load_progress(folder, set(asdict(self.state)))
        self.state = State(
            rollouts=int(saved["rollouts"]), kl_coef=saved["kl_coef"], actor_steps=int(saved["actor_steps"])
        )


def _named(rollout: Rollout, prompts: Prompts) -> Row:
    """Names the rows of a rollout, for a fault."""

    def name(row: int) -> str:
        one = rollout.rows(torch.tensor([row]))
        return f"the response to prompt {prompts.texts.prompts(one)[0][:80]!r} (row {int(one.index)})"

    return name


def _dtype(engine: Engine) -> torch.dtype:
    return next(engine.module.parameters()).dtype
