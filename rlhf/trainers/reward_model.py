"""Reward-model training: likelihood of comparisons between responses to a prompt (numerics D20–D26)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from rlhf.algorithms.preferences import RewardLoss
from rlhf.batch import ComparisonBatch
from rlhf.data.loaded import ComparisonSet
from rlhf.data.order import batch_indices
from rlhf.distributed.engine import Engine
from rlhf.distributed.runtime import Runtime
from rlhf.distributed.watch import WATCH
from rlhf.metrics import Clock, Metrics
from rlhf.models.readouts import Readout
from rlhf.ops.ranking_losses import prompt_mean
from rlhf.trainers.faults import SKIPPED, Faults, NonFinite, Row, numbered
from rlhf.trainers.micro_batches import cut_for, dealt, exact_div, held_out
from rlhf.trainers.progress import load_progress, save_progress
from rlhf.trainers.schedules import Schedule


class RewardModelTrainer:
    """One optimiser step a call, over ``batch_size`` prompts of all ranks together."""

    def __init__(
        self,
        *,
        engine: Engine,
        train: ComparisonSet,
        test: ComparisonSet | None,
        loss: RewardLoss,
        schedule: Schedule,
        batch_size: int,
        micro_batch_size: int,
        micro_batch_tokens: int | None = None,
        total: int,
        seed: int,
        runtime: Runtime,
        export: Callable[[Path], None],
        readout: Readout,
        non_finite: NonFinite = NonFinite.stop,
    ) -> None:
        self.engine, self.train, self.test, self.loss = engine, train, test, loss
        self.schedule, self.batch_size, self.total = schedule, batch_size, total
        self.seed, self.runtime, self.export, self.readout = seed, runtime, export, readout
        self.cut = cut_for(engine, micro_batch_size, micro_batch_tokens, runtime.world_size)
        exact_div(batch_size, runtime.world_size, "batch_size", "ranks")
        self.faults = Faults(non_finite)
        self.done = 0
        engine.module.train()  # transformers recomputes activations in this mode only; dropout is 0

    def step(self) -> Metrics:
        """One optimiser step on the next prompts."""
        clock, metrics, found = Clock(WATCH.enter), Metrics(), Metrics()
        index = batch_indices(self.done * self.batch_size, self.batch_size, len(self.train), self.seed)
        share = index[dealt(self.train.sizes(index), self.runtime.rank, self.runtime.world_size)]
        batch = self.train.batch(share).to(self.runtime.device)
        with clock.phase("update"):
            self.engine.scale_lr(self.schedule(self.done, self.total))
            for rows in self.cut(text_lengths(batch, packed=self.cut.packed)):
                loss = self._measure(batch.rows(rows), found, "", numbered(share[rows], "prompt"))
                self.engine.backward(loss.sum() / self.batch_size)
            metrics.value("reward/lr", self.engine.lr)
            norm = self.faults.step(self.engine, f"step {self.done + 1}")
        if norm is not None:
            found.value("reward/grad_norm", norm)
            metrics.merge(found)
        self.faults.report(metrics)
        self.done += 1
        texts = int(batch.real.sum())
        clock.report(metrics, int(batch.lengths.sum()), texts, self.runtime.world_size)
        return metrics

    def _measure(
        self, part: ComparisonBatch, metrics: Metrics, prefix: str, row: Row, real: Tensor | None = None
    ) -> Tensor:
        """(b,) loss of each prompt, its measurements added to ``metrics`` for prompts that are ``real``."""
        scores = self._scores(part)
        for number, column in enumerate(scores.unbind(1)):
            self.faults.look(f"score of response {number}", column, row, model=self.engine.name)
        loss = self.loss.prompts(scores, part.judged)
        loss = self.faults.loss("loss", loss, row, model=self.engine.name)
        metrics.mean(f"{prefix}loss", loss, real)
        for name, (values, mask) in self._measurements(scores.detach(), part).items():
            metrics.mean(f"{prefix}reward/{name}", values, mask if real is None else mask & real)
        return loss

    def _measurements(self, scores: Tensor, part: ComparisonBatch) -> dict[str, tuple[Tensor, Tensor]]:
        """Means over each prompt's comparisons, and which prompts have any; ties are not right or wrong."""
        prompt, first, second = part.judged.pairs
        label, margin = (x[prompt, first, second] for x in (part.judged.label, part.judged.margin))
        gap = scores[prompt, first] - scores[prompt, second]
        decided = label != 0.5
        better = torch.where(label > 0.5, gap, -gap)[decided]

        def mean(values: Tensor, of: Tensor = prompt) -> tuple[Tensor, Tensor]:
            counts = torch.bincount(of, minlength=len(scores))
            return prompt_mean(values, of, len(scores)), counts > 0

        texts = part.real
        found = {
            "accuracy": mean((better > 0).double(), prompt[decided]),
            "tied": mean((better == 0).double(), prompt[decided]),
            "margin": mean(better, prompt[decided]),
            "score": (torch.where(texts, scores, 0.0).sum(1) / texts.sum(1), texts.any(1)),
        }
        expected = self.loss.ties(gap - margin)
        if expected is not None:
            found |= {"ties_expected": mean(expected), "ties_judged": mean((~decided).double())}
        return found

    def _scores(self, part: ComparisonBatch) -> Tensor:
        """(b, K) scores of all responses, each read once, in one forward."""
        return part.spread(self.readout.scores(self.engine, part.texts()))

    @torch.no_grad()
    def evaluate(self) -> Metrics:
        """Loss and strict accuracy on held-out prompts."""
        metrics = Metrics()
        if self.test is None:
            return metrics
        for index, real in held_out(
            len(self.test), self.cut.rows, self.runtime.rank, self.runtime.world_size
        ):
            batch = self.test.batch(index).to(self.runtime.device)
            for rows in self.cut(text_lengths(batch, packed=self.cut.packed)):
                row = numbered(index[rows], "held-out prompt")
                self._measure(batch.rows(rows), metrics, "eval/", row, real[rows].to(self.runtime.device))
        return self.faults.evaluation(metrics, f"evaluation after step {self.done}")

    def samples(self) -> list[dict[str, object]]:
        """None: this stage samples nothing."""
        return []

    def headline(self, metrics: Mapping[str, float]) -> str:
        """Loss, accuracy, and held-out accuracy when measured; a step that was skipped has none."""
        if "loss" not in metrics:
            return SKIPPED
        line = f"loss {metrics['loss']:.3f}"
        if "reward/accuracy" in metrics:  # else there were ties alone
            line += f", accuracy {metrics['reward/accuracy']:.2f}"
        if "eval/reward/accuracy" in metrics:
            line += f", held-out accuracy {metrics['eval/reward/accuracy']:.3f}"
        return line

    def save(self, folder: Path) -> None:
        """Engine and position."""
        self.engine.save(folder / "reward")
        save_progress(folder, {"done": self.done})

    def load(self, folder: Path) -> None:
        """Continue exactly."""
        self.engine.load(folder / "reward")
        self.done = int(load_progress(folder, {"done"})["done"])


def text_lengths(batch: ComparisonBatch, *, packed: bool) -> Tensor:
    """(B,) tokens that each prompt's texts take, the shorter ones padded unless rows are packed."""
    return batch.lengths.sum(1) if packed else batch.real.sum(1) * batch.lengths.amax(1)
