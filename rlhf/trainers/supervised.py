"""Supervised fine-tuning: minimise −log π of the target tokens (numerics D7)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from rlhf.algorithms.aggregation import TokenMean
from rlhf.batch import SequenceBatch
from rlhf.data.loaded import SupervisedSet
from rlhf.data.order import batch_indices, rank_share
from rlhf.distributed.collectives import all_sum
from rlhf.distributed.engine import Engine
from rlhf.distributed.runtime import Runtime
from rlhf.metrics import Clock, Metrics
from rlhf.trainers.micro_batches import by_length, exact_div, held_out
from rlhf.trainers.progress import load_progress, save_progress
from rlhf.trainers.schedules import Schedule


class SupervisedTrainer:
    """One optimiser step a call, over ``batch_size`` rows of all ranks together."""

    def __init__(
        self,
        *,
        engine: Engine,
        train: SupervisedSet,
        test: SupervisedSet | None,
        schedule: Schedule,
        batch_size: int,
        micro_batch_size: int,
        total: int,
        seed: int,
        runtime: Runtime,
        export: Callable[[Path], None],
    ) -> None:
        self.engine, self.train, self.test, self.schedule = engine, train, test, schedule
        self.batch_size, self.total, self.seed, self.runtime = batch_size, total, seed, runtime
        self.micro_rows = exact_div(micro_batch_size, runtime.world_size, "micro_batch_size", "ranks")
        exact_div(batch_size, runtime.world_size, "batch_size", "ranks")
        self.export = export
        self.done = 0
        engine.module.train()  # transformers recomputes activations in this mode only; dropout is 0

    def step(self) -> Metrics:
        """One optimiser step on the next rows."""
        clock, metrics = Clock(), Metrics()
        batch = self._next_batch()
        with clock.phase("update"):
            weights = TokenMean()(batch.mask, all_sum)  # (B, L)
            self.engine.scale_lr(self.schedule(self.done, self.total))
            for rows in by_length(batch.lengths, self.micro_rows):
                part = batch.rows(rows).trimmed()
                loss = self._token_loss(part)  # (b, l)
                self.engine.backward((weights[rows, : loss.shape[1]] * loss).sum())
                metrics.mean("loss", loss, part.mask)
            metrics.value("actor/lr", self.engine.lr)
            metrics.value("actor/grad_norm", self.engine.step())
        self.done += 1
        clock.report(metrics, int(batch.lengths.sum()), len(batch), self.runtime.world_size)
        return metrics

    def _next_batch(self) -> SequenceBatch:
        index = batch_indices(self.done * self.batch_size, self.batch_size, len(self.train), self.seed)
        share = rank_share(index, self.runtime.rank, self.runtime.world_size)
        return self.train.batch(share).to(self.runtime.device)

    def _token_loss(self, part: SequenceBatch) -> Tensor:
        """(b, l) −log π of each target, 0 elsewhere; column 0 has nothing before it."""
        logprobs = self.engine(part.tokens, part.attention_mask, 1).logprobs  # (b, l-1)
        return torch.where(part.mask, torch.nn.functional.pad(-logprobs, (1, 0)), 0.0)

    @torch.no_grad()
    def evaluate(self) -> Metrics:
        """Mean negative log-probability of the held-out targets, nats per token."""
        metrics = Metrics()
        if self.test is None:
            return metrics
        for index, real in held_out(
            len(self.test), self.micro_rows, self.runtime.rank, self.runtime.world_size
        ):
            part = self.test.batch(index).to(self.runtime.device)
            targets = part.mask & real.to(part.mask.device)[:, None]
            metrics.mean("eval/loss", self._token_loss(part), targets)
        return metrics

    def samples(self) -> list[dict[str, object]]:
        """None: this stage samples nothing."""
        return []

    def headline(self, metrics: Mapping[str, float]) -> str:
        """Loss, and perplexity on held-out text when there is one."""
        if "eval/loss" in metrics:
            return f"loss {metrics['loss']:.3f}, held-out perplexity {math.exp(metrics['eval/loss']):.1f}"
        return f"loss {metrics['loss']:.3f}"

    def save(self, folder: Path) -> None:
        """Engine and position."""
        self.engine.save(folder / "actor")
        save_progress(folder, {"done": self.done})

    def load(self, folder: Path) -> None:
        """Continue exactly."""
        self.engine.load(folder / "actor")
        self.done = int(load_progress(folder, {"done"})["done"])
