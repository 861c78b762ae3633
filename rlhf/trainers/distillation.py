"""On-policy distillation: a student learns a teacher's next-token distributions where its own words lead.

DAgger (Ross et al. 2011) with a language model for the expert: each round collects prefixes from a mixture
of teacher and student, and the teacher says what it would do after each, in full.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlhf.algorithms.aggregation import TokenMean
from rlhf.algorithms.divergences import Divergence
from rlhf.algorithms.mixtures import Mixture
from rlhf.batch import Prefixes, Rollout
from rlhf.data.order import rank_share
from rlhf.distributed.collectives import all_sum
from rlhf.distributed.engine import Engine
from rlhf.distributed.engine_config import Inference
from rlhf.distributed.runtime import Runtime
from rlhf.distributed.watch import WATCH
from rlhf.metrics import Clock, Metrics
from rlhf.models.actor import Actor
from rlhf.models.comparison import Compared
from rlhf.rollout.contract import MixingSampler, sampled
from rlhf.rollout.noise import row_noise
from rlhf.trainers.collection import Prompts, Sizes, drawn_prompts, named
from rlhf.trainers.comparing import compared
from rlhf.trainers.faults import SKIPPED, Faults, NonFinite
from rlhf.trainers.micro_batches import cut_for, exact_div
from rlhf.trainers.progress import load_progress, save_progress
from rlhf.trainers.rollout_metrics import lengths
from rlhf.trainers.rounds import Rounds
from rlhf.trainers.schedules import Schedule

SHOWN = 4
"""Responses of each round, of rank 0, that go to ``samples.jsonl``."""


@dataclass(kw_only=True, slots=True)
class Pair:
    """Student and teacher."""

    student: Engine
    teacher: Inference
    sampling_student: Callable[[], Actor]
    """The student's present weights in a plain module, gathered once per call where they are sharded."""
    sampling_teacher: Actor | None
    """The teacher in a plain module; None where it writes nothing."""


class DistillationTrainer:
    """One round a call: prefixes, then ``steps`` optimiser steps on those of ``keep_rounds`` rounds."""

    def __init__(
        self,
        *,
        models: Pair,
        divergence: Divergence,
        mixture: Mixture,
        temperature: float,
        sampler: MixingSampler,
        train: Prompts,
        test: Prompts | None,
        sizes: Sizes,
        keep_rounds: int | None,
        steps: int,
        batch_size: int,
        schedule: Schedule,
        total: int,
        seed: int,
        runtime: Runtime,
        export: Callable[[Path], None],
        non_finite: NonFinite = NonFinite.stop,
    ) -> None:
        self.models, self.divergence, self.mixture = models, divergence, mixture
        self.temperature, self.sampler, self.train, self.test = temperature, sampler, train, test
        self.sizes, self.steps, self.batch_size = sizes, steps, batch_size
        self.schedule, self.total, self.seed, self.runtime = schedule, total, seed, runtime
        ranks = runtime.world_size
        exact_div(sizes.prompts, ranks, "rollout.prompts", "ranks")
        exact_div(batch_size, ranks, "batch_size", "ranks")
        if test is not None:
            exact_div(len(test.rows), ranks, "rows of test_prompts", "ranks")
        self.cut = cut_for(models.student, sizes.micro_batch, sizes.micro_batch_tokens, ranks)
        self.export, self.faults = export, Faults(non_finite)
        self.done = 0
        self.rounds = Rounds(keep_rounds, seed=seed, runtime=runtime)
        self._samples: list[dict[str, object]] = []
        models.student.module.train()  # transformers recomputes activations in this mode only; dropout is 0

    def step(self) -> Metrics:
        """One round: collect prefixes, then learn what the teacher would do after each."""
        clock, metrics = Clock(WATCH.enter), Metrics()
        with clock.phase("sample"):
            own = self.collect()
        if self.usable(own, metrics):
            self.rounds.add(own)
            shown = self._shown(own.rollout)
            with clock.phase("update"):
                self.models.student.scale_lr(self.schedule(self.done, self.total))
                metrics.value("actor/lr", self.models.student.lr)
                for number, batch in enumerate(self.rounds.batches(self.done, self.steps, self.batch_size)):
                    self.update(batch, metrics, unmoved=number == 0)
            self._report(own, metrics)
            self._samples = shown if "loss" in metrics.pairs else []
        self.faults.report(metrics)
        self.done += 1
        tokens = int(own.rollout.attention_mask.sum())
        clock.report(metrics, tokens, len(own), self.runtime.world_size)
        return metrics

    @property
    def place(self) -> str:
        """The present step, for messages."""
        return f"round {self.done + 1}"

    @property
    def beta(self) -> float:
        """The teacher's share of this round's tokens."""
        return self.mixture(self.done)

    @property
    def first(self) -> int:
        """Number of this round's first prompt in the endless sequence of prompts."""
        return self.done * self.sizes.prompts

    def collect(self) -> Prefixes:
        """This rank's share of a round. No gradient ever flows into what was drawn."""
        prompts = drawn_prompts(
            self.train.rows,
            self.first,
            self.sizes.prompts,
            samples=self.sizes.samples,
            seed=self.seed,
            runtime=self.runtime,
        ).to(self.runtime.device)
        noise, coins = (
            row_noise(prompts.group, self.sampler.max_new_tokens, self.seed, stream).to(prompts.tokens.device)
            for stream in ("sampling", "mixture")
        )
        turns, teacher = coins < self.beta, self.models.sampling_teacher
        if self.beta == 0:
            rollout = sampled(self.sampler, self.models.sampling_student(), prompts, noise)
        elif teacher is None:
            raise ValueError(
                f"the teacher is to write {self.beta:.3g} of {self.place}, and there is no copy of it"
            )
        elif self.beta == 1:
            rollout = sampled(self.sampler, teacher, prompts, noise)
        else:
            student = self.models.sampling_student()
            rollout = self.sampler.sample_from_both(student, teacher, prompts, noise, turns)
        return Prefixes(rollout=rollout, by_teacher=turns[:, : rollout.mask.shape[1]] & rollout.mask)

    def usable(self, own: Prefixes, metrics: Metrics) -> bool:
        """Whether every log-prob of the sampler is finite, on every rank; if not, the round is left out.

        Raises:
            FloatingPointError: one is not, and the run is to stop.
        """
        self._samples = []
        rollout = own.rollout
        row = named(rollout, self.train)
        self.faults.look("sampler's log-prob", rollout.sampler_logprobs, row, mask=rollout.mask)
        usable = self.faults.none(self.place)
        if self.faults.skips:
            metrics.value("faults/skipped_rollouts", float(not usable))
        return usable

    def update(self, batch: Prefixes, metrics: Metrics, *, unmoved: bool = False) -> None:
        """One optimiser step.

        Args:
            batch: this rank's rows.
            metrics: receives its measurements, unless the step had to be skipped.
            unmoved: no parameter has moved since the newest round was sampled.
        """
        found, student = Metrics(), self.models.student
        weights = TokenMean()(batch.rollout.mask, all_sum)  # (b, T), 1/tokens of the responses of all ranks
        for rows in self.cut(batch.rollout.attention_mask.sum(1), batch.rollout.group):
            part = batch.rows(rows).trimmed()
            both = self.compare(part.rollout, weights[rows, : part.rollout.mask.shape[1]])
            self._look(both, part.rollout, student.name)
            student.backward(self.faults.spoiled(both.loss, student.name))
            measure(both, part.rollout.mask, found)
            if unmoved and self.temperature == self.sampler.temperature:
                self._ledger(both, part, found)
        norm = self.faults.step(student, self.place)
        if norm is not None:
            found.value("actor/grad_norm", norm)
            metrics.merge(found)

    def compare(self, part: Rollout, weights: Tensor) -> Compared:
        """Student and teacher on every token of the responses; ``weights`` (b, T) make the loss."""
        inputs = (part.tokens, part.attention_mask, part.prompt_mask.shape[1], self.temperature)
        return compared(
            self.models.student,
            self.models.teacher,
            inputs,
            divergence=self.divergence,
            wanted=part.mask,
            weights=weights,
        )

    def _look(self, both: Compared, part: Rollout, model: str = "", prompts: Prompts | None = None) -> None:
        row = named(part, prompts or self.train)
        self.faults.look("student's log-prob", both.logprobs, row, model=model)
        self.faults.look("teacher's log-prob", both.other_logprobs, row, model=model)
        self.faults.look("divergence", both.divergences, row, model=model)

    def _ledger(self, both: Compared, part: Prefixes, metrics: Metrics) -> None:
        """How far sampler and scorer are apart, on rows of this round: whoever drew a token, scores it."""
        scored = torch.where(part.by_teacher, both.other_logprobs, both.logprobs)
        mask = part.rollout.mask & (part.rollout.group >= self.first)[:, None]
        gap = torch.where(mask, (part.rollout.sampler_logprobs - scored).abs(), 0.0)
        metrics.mean("ledger/logprob_gap_mean", gap, mask)
        metrics.maximum("ledger/logprob_gap_max", gap.max())

    def _report(self, own: Prefixes, metrics: Metrics) -> None:
        lengths(own.rollout, metrics)
        metrics.mean("rollout/teacher_fraction", own.by_teacher.double(), own.rollout.mask)
        metrics.value("rollout/kept", len(self.rounds))

    @torch.no_grad()
    def _shown(self, rollout: Rollout) -> list[dict[str, object]]:
        """A few responses with both KLs, summed over their tokens, before the student moves."""
        few = rollout.rows(torch.arange(min(SHOWN, len(rollout)))).trimmed()
        both = self.compare(few, few.mask.float())
        sums = {"kl_forward": both.forward_kl.sum(1), "kl_reverse": both.reverse_kl.sum(1)}
        return self.train.texts.samples(few, sums, SHOWN)

    @torch.no_grad()
    def evaluate(self) -> Metrics:
        """The same measurements where the student alone answers held-out prompts."""
        metrics = Metrics()
        if self.test is None:
            return metrics
        every = torch.arange(len(self.test.rows))
        index = rank_share(every, self.runtime.rank, self.runtime.world_size)
        prompts = self.test.rows.batch(index, samples=1, groups=index).to(self.runtime.device)
        noise = row_noise(prompts.group, self.sampler.max_new_tokens, self.seed, "evaluation")
        student = self.models.sampling_student()
        rollout = sampled(self.sampler, student, prompts, noise.to(self.runtime.device))
        found = Metrics()
        for rows in self.cut(rollout.attention_mask.sum(1), rollout.group):
            part = rollout.rows(rows).trimmed()
            both = self.compare(part, part.mask.float())
            self._look(both, part, prompts=self.test)
            measure(both, part.mask, found)
        lengths(rollout, found)
        metrics.merge(found, "eval/")
        return self.faults.evaluation(metrics, f"evaluation after round {self.done}")

    def samples(self) -> list[dict[str, object]]:
        """A few responses of the last round with both KLs."""
        return self._samples

    def headline(self, metrics: Mapping[str, float]) -> str:
        """Loss, both KLs and length; a round that was skipped has none."""
        if "loss" not in metrics:
            return SKIPPED
        forward, reverse = metrics["actor/kl_teacher_forward"], metrics["actor/kl_teacher_reverse"]
        length = metrics["rollout/length"]
        return f"loss {metrics['loss']:.3f}, kl {forward:.3f} and {reverse:.3f}, length {length:.1f}"

    def save(self, folder: Path) -> None:
        """Engine, position, and the rounds that later ones learn from too."""
        self.models.student.save(folder / "student")
        self.rounds.save(folder)
        save_progress(folder, {"done": self.done})

    def load(self, folder: Path) -> None:
        """Continue exactly."""
        self.models.student.load(folder / "student")
        self.rounds.load(folder)
        self.done = int(load_progress(folder, {"done"})["done"])


def measure(both: Compared, mask: Tensor, metrics: Metrics) -> None:
    """Per token: the divergence, both KLs whichever it is, and both entropies."""
    metrics.mean("loss", both.divergences, mask)
    metrics.mean("actor/kl_teacher_forward", both.forward_kl, mask)
    metrics.mean("actor/kl_teacher_reverse", both.reverse_kl, mask)
    metrics.mean("actor/entropy", both.entropies, mask)
    metrics.mean("teacher/entropy", both.other_entropies, mask)
