"""The loop that every stage runs in: step, log, evaluate, checkpoint, stop cleanly, continue exactly."""

from __future__ import annotations

import logging
import signal
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from rlhf.distributed import checkpoints
from rlhf.distributed.collectives import all_max, all_sum, is_main
from rlhf.distributed.watch import WATCH
from rlhf.metrics import Metrics
from rlhf.progress_bar import progress
from rlhf.run_folder import RunFolder

log = logging.getLogger(__name__)


class Trainer(Protocol):
    """What the loop needs of a stage."""

    @property
    def done(self) -> int:
        """Steps made so far."""

    @property
    def total(self) -> int:
        """Steps of the whole run."""

    def step(self) -> Metrics:
        """One step of the stage: an optimiser step, or a rollout with its updates."""

    def evaluate(self) -> Metrics:
        """The same measurements on held-out rows, ``eval/…``; empty without any."""

    def samples(self) -> list[dict[str, object]]:
        """Texts worth reading since the last call."""

    def headline(self, metrics: Mapping[str, float]) -> str:
        """The few numbers to show beside the progress bar."""

    def save(self, folder: Path) -> None:
        """Write everything needed to continue exactly; every rank calls it."""

    def load(self, folder: Path) -> None:
        """Continue from what ``save`` wrote."""

    def export(self, folder: Path) -> None:
        """Write the trained model as a Hugging Face folder; every rank calls it."""


@dataclass(kw_only=True, slots=True)
class Cadence:
    """How often a run evaluates and saves."""

    evaluate_every: int = 50
    """Steps between evaluations on held-out rows; the last is always evaluated, 0 evaluates only then."""
    checkpoint_every: int = 50
    """Steps between checkpoints; 0 writes one only when the run is stopped by a signal."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""

    def __post_init__(self) -> None:
        for name in ("evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"Cadence.{name} must not be negative, got {getattr(self, name)}")
        if self.keep_checkpoints < 1:
            raise ValueError(f"Cadence.keep_checkpoints must be at least 1, got {self.keep_checkpoints}")


class Interrupted(Exception):  # noqa: N818 - not an error: the user asked the run to stop
    """The run was stopped by a signal, after a checkpoint."""

    def __init__(self, number: int, checkpoint: Path) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name}; continue with resume=true ({checkpoint})"
        )
        self.number = number


def run(trainer: Trainer, folder: RunFolder, cadence: Cadence, *, resume: bool) -> None:
    """Step ``trainer`` to its end, from its last whole checkpoint if ``resume``, and export the model.

    Raises:
        Interrupted: SIGINT or SIGTERM arrived and a checkpoint was written.
        ValueError: nothing to resume from, or no whole checkpoint.
    """
    if resume:
        _continue(trainer, folder)
    with (
        _Signals() as signals,
        progress(trainer.total, done=trainer.done, shown=is_main()) as bar,
    ):
        while trainer.done < trainer.total:
            WATCH.enter("step", trainer.done + 1)
            metrics = trainer.step()
            last = trainer.done == trainer.total
            if last or _due(trainer.done, cadence.evaluate_every):
                WATCH.enter("evaluation")
                metrics.merge(trainer.evaluate())
            WATCH.enter("logging")
            finished = metrics.reduce(all_sum, all_max)
            folder.log(trainer.done, finished)
            folder.samples(trainer.done, trainer.samples())
            bar.set_postfix_str(trainer.headline(finished), refresh=False)
            bar.update()
            number = int(all_max(torch.tensor([signals.number])).item())
            if number or _due(trainer.done, cadence.checkpoint_every):
                WATCH.enter("checkpoint")
                path = checkpoints.write(
                    folder.checkpoints, trainer.done, trainer.save, keep=cadence.keep_checkpoints
                )
                if number:
                    raise Interrupted(number, path)
    WATCH.enter("export")
    trainer.export(folder.model)


def _continue(trainer: Trainer, folder: RunFolder) -> None:
    checkpoint = checkpoints.latest(folder.checkpoints)
    if checkpoint is None:
        raise ValueError(f"resume=true, but {folder.checkpoints} holds no checkpoint to continue from")
    WATCH.enter("resume")
    trainer.load(checkpoint)
    folder.rewind(trainer.done)
    if is_main():
        log.info("continuing from %s", checkpoint)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


class _Signals:
    """Notes the first SIGINT or SIGTERM, so that the step can end; a second one acts at once."""

    def __init__(self) -> None:
        self.number = 0
        self._previous: dict[int, Callable[[int, types.FrameType | None], object] | int | None] = {}

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, _frame: types.FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
