"""Offline preference optimisation: a policy from pairs or labels, without sampling (numerics D52, D53)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from rlhf.data.order import batch_indices
from rlhf.distributed.engine import Engine
from rlhf.distributed.runtime import Runtime
from rlhf.distributed.watch import WATCH
from rlhf.metrics import Clock, Metrics
from rlhf.trainers.faults import SKIPPED, Faults, NonFinite, Row, numbered
from rlhf.trainers.feedback import Examples, Feedback, Measured
from rlhf.trainers.micro_batches import cut_for, dealt, exact_div, held_out
from rlhf.trainers.progress import load_progress, save_progress
from rlhf.trainers.schedules import Schedule


class PreferenceTrainer:
    """One optimiser step a call, over ``batch_size`` pairs or labelled responses of all ranks together."""

    def __init__(
        self,
        *,
        engine: Engine,
        train: Feedback,
        test: Feedback | None,
        schedule: Schedule,
        batch_size: int,
        micro_batch_size: int,
        micro_batch_tokens: int | None = None,
        total: int,
        seed: int,
        runtime: Runtime,
        export: Callable[[Path], None],
        non_finite: NonFinite = NonFinite.stop,
    ) -> None:
        self.engine, self.train, self.test, self.schedule = engine, train, test, schedule
        self.batch_size, self.total, self.seed, self.runtime = batch_size, total, seed, runtime
        self.cut = cut_for(engine, micro_batch_size, micro_batch_tokens, runtime.world_size)
        exact_div(batch_size, runtime.world_size, "batch_size", "ranks")
        self.export, self.faults = export, Faults(non_finite)
        self.done = 0
        engine.module.train()  # transformers recomputes activations in this mode only; dropout is 0

    def step(self) -> Metrics:
        """One optimiser step on the next rows."""
        clock, metrics, found = Clock(WATCH.enter), Metrics(), Metrics()
        index = batch_indices(self.done * self.batch_size, self.batch_size, len(self.train), self.seed)
        share = index[dealt(self.train.rows.sizes(index), self.runtime.rank, self.runtime.world_size)]
        batch = self.train.examples(share, self.runtime.device)
        with clock.phase("update"):
            self.engine.scale_lr(self.schedule(self.done, self.total))
            every = torch.ones(len(batch), dtype=torch.bool)
            baseline = self.train.baseline(self.engine, self.cut, [(batch, every)])
            for rows in self.cut(self.train.lengths(batch, packed=self.cut.packed)):
                part, row = batch.rows(rows), numbered(share[rows], self.train.row)
                measured = self.train.measure(self.engine, part, baseline)
                loss = self._noted(measured, found, row, every[rows])
                self.engine.backward(loss.sum() / self.batch_size)
            metrics.value("actor/lr", self.engine.lr)
            norm = self.faults.step(self.engine, f"step {self.done + 1}")
        if norm is not None:
            found.value("actor/grad_norm", norm)
            metrics.merge(found)
        self.faults.report(metrics)
        self.done += 1
        clock.report(metrics, batch.tokens, 2 * len(batch), self.runtime.world_size)
        return metrics

    def _noted(
        self, measured: Measured, metrics: Metrics, row: Row, real: Tensor, *, prefix: str = ""
    ) -> Tensor:
        """(b,) loss of each row, its measurements added to ``metrics`` for rows that are ``real``."""
        for what, values in measured.logprobs.items():
            self.faults.look(what, values, row, model=self.engine.name)
        loss = self.faults.loss("loss", measured.loss, row, model=self.engine.name)
        real = real.to(loss.device)
        metrics.mean(f"{prefix}loss", loss, real)
        for name, (values, counted) in measured.numbers.items():
            metrics.mean(f"{prefix}{name}", values, real if counted is None else real & counted)
        return loss

    @torch.no_grad()
    def evaluate(self) -> Metrics:
        """The same measurements on held-out rows."""
        metrics = Metrics()
        if self.test is None:
            return metrics
        baseline = self.test.baseline(
            self.engine, self.cut, ((batch, real) for batch, _, real in self._held_out(self.test))
        )
        for batch, index, real in self._held_out(self.test):
            for rows in self.cut(self.test.lengths(batch, packed=self.cut.packed)):
                row = numbered(index[rows], f"held-out {self.test.row}")
                measured = self.test.measure(self.engine, batch.rows(rows), baseline)
                self._noted(measured, metrics, row, real[rows], prefix="eval/")
        return self.faults.evaluation(metrics, f"evaluation after step {self.done}")

    def _held_out(self, test: Feedback) -> Iterator[tuple[Examples, Tensor, Tensor]]:
        """This rank's held-out rows, their numbers, and which of them are real."""
        ranks = (self.runtime.rank, self.runtime.world_size)
        for index, real in held_out(len(test), self.cut.rows, *ranks):
            yield test.examples(index, self.runtime.device), index, real

    def samples(self) -> list[dict[str, object]]:
        """None: this stage samples nothing."""
        return []

    def headline(self, metrics: Mapping[str, float]) -> str:
        """Loss, accuracy, and held-out accuracy when measured; a step that was skipped has none."""
        if "loss" not in metrics:
            return SKIPPED
        line = f"loss {metrics['loss']:.3f}, accuracy {metrics['reward/accuracy']:.2f}"
        if "eval/reward/accuracy" in metrics:
            line += f", held-out accuracy {metrics['eval/reward/accuracy']:.3f}"
        return line

    def save(self, folder: Path) -> None:
        """Engine and position."""
        self.engine.save(folder / "actor")
        save_progress(folder, {"done": self.done})

    def load(self, folder: Path) -> None:
        """Continue exactly."""
        self.engine.load(folder / "actor")
        self.done = int(load_progress(folder, {"done"})["done"])
