"""Online reinforcement learning: collect a rollout, score it, estimate advantages, update.

One trainer for every policy-gradient method; what tells them apart is the ``PolicyGradient`` bundle of
components (``rlhf/algorithms/policy_gradient.py``). Read ``PolicyGradientTrainer.step`` first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from rlhf.algorithms.policy_gradient import PolicyGradient
from rlhf.batch import Experience, Rollout
from rlhf.data.order import rank_share
from rlhf.distributed.collectives import all_sum
from rlhf.distributed.runtime import Runtime
from rlhf.distributed.watch import WATCH
from rlhf.metrics import Clock, Metrics
from rlhf.ops.logprobs import TokenLogprobs
from rlhf.rollout.contract import ResponseSampler
from rlhf.trainers import rollout_metrics
from rlhf.trainers.collection import Collected, Collector, Prompts, Scored, Sizes, named
from rlhf.trainers.faults import SKIPPED, Faults, NonFinite
from rlhf.trainers.micro_batches import cut_for, exact_div
from rlhf.trainers.minibatches import Minibatches
from rlhf.trainers.online import Models, State
from rlhf.trainers.policy_update import Updater
from rlhf.trainers.pretraining import Pretraining
from rlhf.trainers.rollout_metrics import Measured
from rlhf.trainers.schedules import Schedule
from rlhf.trainers.scoring import Policy, Scorer

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


class PolicyGradientTrainer:
    """One rollout and its updates a call."""

    def __init__(
        self,
        *,
        models: Models,
        algorithm: PolicyGradient,
        sampler: ResponseSampler,
        train: Prompts,
        test: Prompts | None,
        sizes: Sizes,
        exact_kl: bool,
        schedule: Schedule,
        total: int,
        seed: int,
        runtime: Runtime,
        export: Callable[[Path], None],
        pretraining: Pretraining | None = None,
        non_finite: NonFinite = NonFinite.stop,
    ) -> None:
        self.models, self.algorithm, self.train, self.test = models, algorithm, train, test
        self.schedule, self.total, self.seed = schedule, total, seed
        self.runtime, self.export = runtime, export
        _expect_equal_shares(sizes, algorithm, test, runtime.world_size)
        self.shuffled = Minibatches(
            epochs=algorithm.epochs, count=algorithm.minibatches, seed=seed, runtime=runtime
        )
        cut = cut_for(models.actor, sizes.micro_batch, sizes.micro_batch_tokens, runtime.world_size)
        self.faults = Faults(non_finite)
        self.collector = Collector(
            sampling_actor=models.sampling_actor,
            reward=models.reward,
            sampler=sampler,
            prompts=train,
            sizes=sizes,
            draws=algorithm.dynamic_sampling,
            adjusted=algorithm.adjusted,
            seed=seed,
            runtime=runtime,
            faults=self.faults,
        )
        self.scorer = Scorer(
            actor=models.actor,
            critic=models.critic,
            reference=models.reference,
            sampler=sampler,
            cut=cut,
            exact_kl=exact_kl,
        )
        self.updater = Updater(
            models=models,
            algorithm=algorithm,
            scorer=self.scorer,
            cut=cut,
            pretraining=pretraining,
            prompts=train,
            faults=self.faults,
            ranks=runtime.world_size,
        )
        self.state = State(kl_coef=algorithm.kl.initial_coef, penalty=algorithm.policy_loss.initial_penalty)
        models.learn()
        self._samples: list[dict[str, object]] = []

    @property
    def done(self) -> int:
        """Rollouts finished."""
        return self.state.rollouts

    def step(self) -> Metrics:
        """One iteration: collect, measure, estimate advantages, update."""
        clock, metrics = Clock(WATCH.enter), Metrics()
        collected = self.collector.collect(self.state.drawn, clock)
        greedy = self._greedy(collected, clock)
        scored = collected.scored
        with clock.phase("logprobs"):
            measured = self.measure(scored)
            values = self.scorer.values(scored.rollout)
            expected = None if greedy is None else self.measure(greedy, learns=False)
        with clock.phase("advantages"):
            experience = self.estimate(measured, values, expected)
            usable = self.usable(measured, experience, metrics)
        if usable:
            with clock.phase("update"):
                self.scale_learning_rates(metrics)
                old_kl = self.updates(experience, metrics, measured.live)
            self.finish(experience, measured, old_kl, metrics)
            self._report_drawing(collected, metrics)
        self.faults.report(metrics)
        self.state.rollouts += 1
        self.state.drawn += collected.drawn
        tokens = int(scored.rollout.attention_mask.sum())
        clock.report(metrics, tokens, len(scored.rollout), self.runtime.world_size)
        return metrics

    @property
    def place(self) -> str:
        """The present step, for messages."""
        return self.state.place

    def _greedy(self, collected: Collected, clock: Clock) -> Scored | None:
        """Greedy responses to the rollout's prompts, for the estimator that compares with them."""
        if not self.algorithm.advantage.needs_greedy:
            return None
        return self.collector.greedy(collected.scored.rollout, clock)

    @torch.no_grad()
    def measure(self, scored: Scored, policy: Policy | None = None, *, learns: bool = True) -> Measured:
        """Log-probs of actor (or ``policy``) and reference, and the reward of each token.

        Args:
            scored: all rows.
            policy: other than the actor.
            learns: whether updates follow, of which the first may go on from this very pass.
        """
        live = learns and self.algorithm.starts_whole and self.algorithm.actor_learns(self.state.rollouts)
        rollout, found = scored.rollout, self.scorer.logprobs(scored.rollout, policy, live=live)
        rewards = self.algorithm.shape(
            scored.scores, rollout.ended, found.policy, found.reference, rollout.mask, self.state.kl_coef
        )
        return Measured(
            rollout=rollout,
            scores=scored.scores,
            parts=scored.parts,
            rewards=rewards,
            old_logprobs=found.policy,
            ref_logprobs=found.reference,
            entropies=found.entropies,
            exact_kl=found.exact_kl,
            live=found.live,
        )

    def estimate(
        self, measured: Measured, values: Tensor | None, greedy: Measured | None = None
    ) -> Experience:
        """Advantages and returns, fixed for all updates of this rollout."""
        rollout = measured.rollout
        estimate = self.algorithm.estimate(
            measured.rewards, values, rollout.mask, rollout.group, all_sum, self._baselines(rollout, greedy)
        )
        return Experience(
            rollout=rollout,
            old_logprobs=measured.old_logprobs,
            ref_logprobs=measured.ref_logprobs,
            advantages=estimate.advantages,
            returns=estimate.returns,
            old_values=values,
        )

    def _baselines(self, rollout: Rollout, greedy: Measured | None) -> Tensor:
        """(B,) what was expected of each response before it was drawn: a mean, or the greedy one's return."""
        if greedy is None:
            return torch.full((len(rollout),), self.state.baseline, device=rollout.tokens.device)
        returns = torch.where(greedy.rollout.mask, greedy.rewards, 0.0).sum(1)
        same = rollout.group[:, None] == greedy.rollout.group  # (B, groups)
        return returns[same.long().argmax(1)]

    def usable(self, measured: Measured, experience: Experience, metrics: Metrics) -> bool:
        """Whether every number of the rollout is finite, on every rank; if not, nothing is learnt from it.

        Raises:
            FloatingPointError: one is not, and the run is to stop.
        """
        self._samples = []
        self._look(measured, self.train)
        row, mask = named(experience.rollout, self.train), experience.rollout.mask
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
        row, mask = named(measured.rollout, prompts), measured.rollout.mask
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
        """This rank's rows of each optimiser step: all once an epoch, in a fresh order (numerics D41)."""
        return self.shuffled(experience, self.state.rollouts)

    def updates(self, experience: Experience, metrics: Metrics, live: TokenLogprobs | None = None) -> float:
        """All optimiser steps of a rollout, or as many as the policy may move.

        Args:
            experience: the rollout.
            metrics: receives measurements.
            live: the log-probs that it was scored with, where the first step is to learn from them.

        Returns:
            KL(π_old‖π) at the last of them, nats per token over all ranks.
        """
        old_kl = 0.0
        for number, minibatch in enumerate(self.minibatches(experience)):
            old_kl = self.update(minibatch, metrics, on_policy=number == 0, live=live)
            live = None  # its graph is used up, and the parameters have moved
            if self.algorithm.stops(old_kl):
                break
        return old_kl

    def update(
        self,
        minibatch: Experience,
        metrics: Metrics,
        *,
        on_policy: bool = False,
        live: TokenLogprobs | None = None,
    ) -> float:
        """One optimiser step of the actor and one of the critic, from the whole minibatch's gradients.

        Args:
            minibatch: this rank's rows.
            metrics: receives its measurements, unless a step had to be skipped.
            on_policy: no parameter has moved since the rows were scored, so the ratio must be 1.
            live: what scored them, in the one pass that they all make.

        Returns:
            KL(π_old‖π) before the step, nats per token over all ranks; 0 where the actor is not updated.

        Raises:
            FloatingPointError: a number is not finite and the run is to stop, or the first ratio is not 1.
        """
        return self.updater(minibatch, self.state, metrics, on_policy=on_policy, live=live)

    def finish(self, experience: Experience, measured: Measured, old_kl: float, metrics: Metrics) -> None:
        """Report the rollout, keep a few texts, move what is steered by it."""
        means = rollout_metrics.rollout(measured, metrics)
        rollout_metrics.critic(experience, metrics)
        metrics.value("actor/kl_coef", self.state.kl_coef)
        metrics.value("actor/steps", self.state.actor_steps)
        self._samples = self.train.texts.samples(experience.rollout, rollout_metrics.shown(measured), SHOWN)
        algorithm, state = self.algorithm, self.state
        if algorithm.policy_loss.initial_penalty > 0:
            metrics.value("actor/penalty_coef", state.penalty)
        rows = len(experience) * self.runtime.world_size
        state.kl_coef = algorithm.kl.next_coef(state.kl_coef, means.kl, rows)
        state.penalty = algorithm.policy_loss.next_penalty(state.penalty, old_kl)
        state.baseline = algorithm.advantage.next_baseline(state.baseline, means.total, state.rollouts)
        if self.models.average is not None:
            self.models.average.update(self.models.actor.module)

    def _report_drawing(self, collected: Collected, metrics: Metrics) -> None:
        """How much was drawn, where groups of equal scores are replaced."""
        if self.algorithm.dynamic_sampling is not None:
            metrics.value("rollout/prompts_drawn", collected.drawn)
            metrics.value("rollout/unequal_fraction", collected.unequal / collected.drawn)

    def evaluate(self) -> Metrics:
        """Score and KL of the present policy, or its average, on held-out prompts, one response each."""
        metrics = Metrics()
        if self.test is None:
            return metrics
        policy = None if self.models.average is None else self.models.average.module
        rows = torch.arange(len(self.test.rows))
        index = rank_share(rows, self.runtime.rank, self.runtime.world_size)
        prompts = self.test.rows.batch(index, samples=1, groups=index)
        rollout = self.collector.sample(prompts, "evaluation", actor=policy)
        measured = self.measure(self.collector.score(rollout, self.test), policy, learns=False)
        self._look(measured, self.test)
        found = Metrics()
        rollout_metrics.rollout(measured, found)
        metrics.merge(found, "eval/")
        return self.faults.evaluation(metrics, f"evaluation after rollout {self.done}")

    def samples(self) -> list[dict[str, object]]:
        """A few responses of the last rollout with score and KL."""
        return self._samples

    def headline(self, metrics: Mapping[str, float]) -> str:
        """Score, KL and length; of a rollout that was skipped there are none."""
        if "reward/score" not in metrics:
            return SKIPPED
        kl = f", kl {metrics['actor/kl_reference']:.2f}" if "actor/kl_reference" in metrics else ""
        return f"score {metrics['reward/score']:.2f}{kl}, length {metrics['rollout/length']:.1f}"

    def save(self, folder: Path) -> None:
        """Engines, average and state."""
        self.models.actor.save(folder / "actor")
        if self.models.critic is not None:
            self.models.critic.save(folder / "critic")
        if self.models.average is not None:
            self.models.average.save(folder)
        self.state.write(folder)

    def load(self, folder: Path) -> None:
        """Continue exactly."""
        self.models.actor.load(folder / "actor")
        if self.models.critic is not None:
            self.models.critic.load(folder / "critic")
        if self.models.average is not None:
            self.models.average.load(folder)
        self.state = State.read(folder)


def _expect_equal_shares(sizes: Sizes, algorithm: PolicyGradient, test: Prompts | None, ranks: int) -> None:
    """Refuse rows that ranks and minibatches cannot share out equally.

    Raises:
        ValueError: names what was to be divided.
    """
    exact_div(sizes.prompts, ranks, "rollout.prompts", "ranks")
    rows = exact_div(sizes.prompts * sizes.samples, ranks, "rollout.prompts × rollout.samples", "ranks")
    exact_div(rows, algorithm.minibatches, "rows per rank", "algorithm.minibatches")
    if test is not None:
        exact_div(len(test.rows), ranks, "rows of test_prompts", "ranks")
