"""Supervised fine-tuning: minimise −log π of the target tokens (numerics D7)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlhf.algorithms.aggregation import TokenMean
from rlhf.algorithms.divergences import ReverseKL
from rlhf.batch import SequenceBatch
from rlhf.data.loaded import SupervisedSet
from rlhf.data.order import batch_indices
from rlhf.distributed.collectives import all_sum
from rlhf.distributed.engine import Engine
from rlhf.distributed.engine_config import Inference
from rlhf.distributed.runtime import Runtime
from rlhf.distributed.watch import WATCH
from rlhf.metrics import Clock, Metrics
from rlhf.trainers.comparing import compared
from rlhf.trainers.faults import SKIPPED, Faults, NonFinite, Row, numbered
from rlhf.trainers.micro_batches import cut_for, dealt, exact_div, held_out
from rlhf.trainers.progress import load_progress, save_progress
from rlhf.trainers.schedules import Schedule


@dataclass(kw_only=True, slots=True)
class Anchor:
    """Keeps the policy near a frozen one: coef·KL(π‖π_ref) of each target token, in full (Lu et al. 2022)."""

    reference: Inference
    coef: float


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
        micro_batch_tokens: int | None = None,
        total: int,
        seed: int,
        runtime: Runtime,
        export: Callable[[Path], None],
        non_finite: NonFinite = NonFinite.stop,
        anchor: Anchor | None = None,
    ) -> None:
        self.engine, self.train, self.test, self.schedule = engine, train, test, schedule
        self.batch_size, self.total, self.seed, self.runtime = batch_size, total, seed, runtime
        self.cut = cut_for(engine, micro_batch_size, micro_batch_tokens, runtime.world_size)
        exact_div(batch_size, runtime.world_size, "batch_size", "ranks")
        self.export, self.faults, self.anchor = export, Faults(non_finite), anchor
        self.done = 0
        engine.module.train()  # transformers recomputes activations in this mode only; dropout is 0

    def step(self) -> Metrics:
        """One optimiser step on the next rows."""
        clock, metrics, found = Clock(WATCH.enter), Metrics(), Metrics()
        batch = self._next_batch()
        with clock.phase("update"):
            weights = TokenMean()(batch.mask, all_sum)  # (B, L)
            self.engine.scale_lr(self.schedule(self.done, self.total))
            for rows in self.cut(batch.lengths):
                self._descend(batch.rows(rows).trimmed(), weights[rows], self._named(rows), found)
            metrics.value("actor/lr", self.engine.lr)
            norm = self.faults.step(self.engine, f"step {self.done + 1}")
        if norm is not None:
            found.value("actor/grad_norm", norm)
            metrics.merge(found)
        self.faults.report(metrics)
        self.done += 1
        clock.report(metrics, int(batch.lengths.sum()), len(batch), self.runtime.world_size)
        return metrics

    def _descend(self, part: SequenceBatch, weights: Tensor, row: Row, found: Metrics) -> None:
        """Add a micro-batch's gradient to the engine's."""
        if self.anchor is None:
            loss = descend(self.engine, part, weights, self.faults, "loss", row)
        else:
            loss, kl = descend_near(self.engine, self.anchor, part, weights, self.faults, row)
            found.mean("actor/kl_reference_per_token", kl, part.mask)
        found.mean("loss", loss, part.mask)

    def _next_batch(self) -> SequenceBatch:
        return self.train.batch(self._next_rows()).to(self.runtime.device)

    def _next_rows(self) -> Tensor:
        index = batch_indices(self.done * self.batch_size, self.batch_size, len(self.train), self.seed)
        return index[dealt(self.train.sizes(index), self.runtime.rank, self.runtime.world_size)]

    def _named(self, rows: Tensor) -> Row:
        """Names the rows of a micro-batch by their numbers in the data set."""
        return lambda row: f"row {int(self._next_rows()[rows][row])}"

    @torch.no_grad()
    def evaluate(self) -> Metrics:
        """Mean negative log-probability of the held-out targets, nats per token."""
        metrics = Metrics()
        if self.test is None:
            return metrics
        for index, real in held_out(
            len(self.test), self.cut.rows, self.runtime.rank, self.runtime.world_size
        ):
            batch = self.test.batch(index).to(self.runtime.device)
            for rows in self.cut(batch.lengths):
                part = batch.rows(rows).trimmed()
                targets = part.mask & real[rows].to(part.mask.device)[:, None]
                loss = negative_logprobs(self.engine, part)
                self.faults.look("held-out loss", loss, numbered(index[rows]))
                metrics.mean("eval/loss", loss, targets)
        return self.faults.evaluation(metrics, f"evaluation after step {self.done}")

    def samples(self) -> list[dict[str, object]]:
        """None: this stage samples nothing."""
        return []

    def headline(self, metrics: Mapping[str, float]) -> str:
        """Loss, and perplexity on held-out text when there is one; a step that was skipped has none."""
        if "loss" not in metrics:
            return SKIPPED
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


def negative_logprobs(engine: Engine, part: SequenceBatch) -> Tensor:
    """(b, l) −log π of each target, 0 elsewhere; column 0 has nothing before it (numerics D7)."""
    return _shifted(engine(part.tokens, part.attention_mask, 1, wanted=part.mask[:, 1:]).logprobs)


def descend(  # noqa: PLR0917
    engine: Engine, part: SequenceBatch, weights: Tensor, faults: Faults, what: str, row: Row
) -> Tensor:
    """Add the gradient of Σ weights·(−log π) over the targets to the engine's.

    Args:
        engine: around an actor.
        part: b rows of width l.
        weights: (b, L ≥ l) of each token in the step's loss.
        faults: receives what is not finite.
        what: what it calls −log π.
        row: names a row.

    Returns:
        (b, l) −log π of each target, detached, 0 elsewhere.
    """
    share = weights[:, 1 : part.tokens.shape[1]]
    swept = engine(
        part.tokens,
        part.attention_mask,
        1,
        wanted=part.mask[:, 1:],
        token_loss=lambda found: -share * found.logprobs,
    )
    loss = _shifted(swept.logprobs)
    faults.look(what, loss, row, model=engine.name)
    engine.backward(faults.spoiled(swept.loss, engine.name))
    return loss


def descend_near(  # noqa: PLR0917
    engine: Engine, anchor: Anchor, part: SequenceBatch, weights: Tensor, faults: Faults, row: Row
) -> tuple[Tensor, Tensor]:
    """:func:`descend` with coef·KL(π‖π_ref) added to the −log π of each target.

    Returns:
        (b, l) −log π of each target and KL there, detached, 0 elsewhere.
    """
    share = weights[:, 1 : part.tokens.shape[1]]
    both = compared(
        engine,
        anchor.reference,
        (part.tokens, part.attention_mask, 1, 1.0),
        divergence=ReverseKL(),
        wanted=part.mask[:, 1:],
        weights=anchor.coef * share,
        target_weights=share,
    )
    loss, kl = _shifted(both.logprobs), pad(both.reverse_kl, (1, 0))
    faults.look("loss", loss, row, model=engine.name)
    faults.look("KL to the reference", kl, row, model=engine.name)
    engine.backward(faults.spoiled(both.loss, engine.name))
    return loss, kl


def _shifted(logprobs: Tensor) -> Tensor:
    """(b, l − 1) log π from column 1 on → (b, l) −log π."""
    return pad(-logprobs, (1, 0))
