"""Reward-model training: Bradley–Terry on pairs of responses (numerics D20–D22, D26)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from rlhf.algorithms.preferences import PairLoss
from rlhf.batch import PreferenceBatch, SequenceBatch
from rlhf.data.loaded import PreferenceSet
from rlhf.data.order import batch_indices
from rlhf.distributed.engine import Engine
from rlhf.distributed.runtime import Runtime
from rlhf.distributed.watch import WATCH
from rlhf.metrics import Clock, Metrics
from rlhf.models.scalar import score_at_last
from rlhf.trainers.faults import SKIPPED, Faults, NonFinite, Row, numbered
from rlhf.trainers.micro_batches import cut_for, dealt, exact_div, held_out
from rlhf.trainers.progress import load_progress, save_progress
from rlhf.trainers.schedules import Schedule


class RewardModelTrainer:
    """One optimiser step a call, over ``batch_size`` pairs of all ranks together."""

    def __init__(
        self,
        *,
        engine: Engine,
        train: PreferenceSet,
        test: PreferenceSet | None,
        pair_loss: PairLoss,
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
        self.engine, self.train, self.test, self.pair_loss = engine, train, test, pair_loss
        self.schedule, self.batch_size, self.total = schedule, batch_size, total
        self.seed, self.runtime, self.export = seed, runtime, export
        self.cut = cut_for(engine, micro_batch_size, micro_batch_tokens, runtime.world_size)
        exact_div(batch_size, runtime.world_size, "batch_size", "ranks")
        self.faults = Faults(non_finite)
        self.done = 0
        engine.module.train()  # transformers recomputes activations in this mode only; dropout is 0

    def step(self) -> Metrics:
        """One optimiser step on the next pairs."""
        clock, metrics, found = Clock(WATCH.enter), Metrics(), Metrics()
        index = batch_indices(self.done * self.batch_size, self.batch_size, len(self.train), self.seed)
        share = index[dealt(self.train.sizes(index), self.runtime.rank, self.runtime.world_size)]
        batch = self.train.batch(share).to(self.runtime.device)
        with clock.phase("update"):
            self.engine.scale_lr(self.schedule(self.done, self.total))
            for rows in self.cut(pair_lengths(batch, packed=self.cut.packed)):
                loss = self._measure(batch.rows(rows), found, "", numbered(share[rows], "pair"))
                self.engine.backward(loss.sum() / self.batch_size)
            metrics.value("reward/lr", self.engine.lr)
            norm = self.faults.step(self.engine, f"step {self.done + 1}")
        if norm is not None:
            found.value("reward/grad_norm", norm)
            metrics.merge(found)
        self.faults.report(metrics)
        self.done += 1
        tokens = int(batch.chosen.lengths.sum() + batch.rejected.lengths.sum())
        clock.report(metrics, tokens, 2 * len(batch), self.runtime.world_size)
        return metrics

    def _measure(
        self, part: PreferenceBatch, metrics: Metrics, prefix: str, row: Row, real: Tensor | None = None
    ) -> Tensor:
        """(b,) loss of each pair, its measurements added to ``metrics`` for pairs that are ``real``."""
        chosen, rejected = self._scores(part.chosen, part.rejected)
        for what, scores in (("chosen score", chosen), ("rejected score", rejected)):
            self.faults.look(what, scores, row, model=self.engine.name)
        loss = self.pair_loss(chosen, rejected, part.margin)
        loss = self.faults.loss("loss", loss, row, model=self.engine.name)
        metrics.mean(f"{prefix}loss", loss, real)
        metrics.mean(f"{prefix}reward/accuracy", (chosen > rejected).double(), real)
        metrics.mean(f"{prefix}reward/tied", (chosen == rejected).double(), real)
        metrics.mean(f"{prefix}reward/margin", chosen - rejected, real)
        metrics.mean(f"{prefix}reward/score", (chosen + rejected) / 2, real)
        return loss

    def _scores(self, chosen: SequenceBatch, rejected: SequenceBatch) -> tuple[Tensor, Tensor]:
        """(b,) scores of both sides, from one forward."""
        both = stack(chosen, rejected).trimmed()
        scores = score_at_last(self.engine(both.tokens, both.attention_mask), both.attention_mask)
        better, worse = scores.chunk(2)
        return better, worse

    @torch.no_grad()
    def evaluate(self) -> Metrics:
        """Loss and strict accuracy on held-out pairs."""
        metrics = Metrics()
        if self.test is None:
            return metrics
        for index, real in held_out(
            len(self.test), self.cut.rows, self.runtime.rank, self.runtime.world_size
        ):
            batch = self.test.batch(index).to(self.runtime.device)
            for rows in self.cut(pair_lengths(batch, packed=self.cut.packed)):
                row = numbered(index[rows], "held-out pair")
                self._measure(batch.rows(rows), metrics, "eval/", row, real[rows].to(self.runtime.device))
        return self.faults.evaluation(metrics, f"evaluation after step {self.done}")

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
        self.engine.save(folder / "reward")
        save_progress(folder, {"done": self.done})

    def load(self, folder: Path) -> None:
        """Continue exactly."""
        self.engine.load(folder / "reward")
        self.done = int(load_progress(folder, {"done"})["done"])


def pair_lengths(pairs: PreferenceBatch, *, packed: bool) -> Tensor:
    """(B,) tokens that each pair takes: of both sides, the shorter one padded unless rows are packed."""
    chosen, rejected = pairs.chosen.lengths, pairs.rejected.lengths
    return chosen + rejected if packed else 2 * torch.maximum(chosen, rejected)


def stack(first: SequenceBatch, second: SequenceBatch) -> SequenceBatch:
    """The rows of both, right-padded to a common width."""
    width = max(first.tokens.shape[1], second.tokens.shape[1])

    def join(name: str) -> Tensor:
        parts = [getattr(batch, name) for batch in (first, second)]
        return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])

    return SequenceBatch(tokens=join("tokens"), attention_mask=join("attention_mask"), mask=join("mask"))
