"""Numbers that are not finite: which one and where, and whether the run stops or leaves the step out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum

import torch
from torch import Tensor

from rlhf.distributed.collectives import all_max, gather_objects, world_size
from rlhf.distributed.engine import Engine
from rlhf.metrics import Metrics

log = logging.getLogger(__name__)

Row = Callable[[int], str]
"""Names a row of a batch by its number in it, for a message."""

SKIPPED = "skipped: not finite"
"""What is shown beside the progress bar for a step that was skipped."""


class NonFinite(Enum):
    """What a run does about a NaN or an infinity in a score, a log-prob, a value, a loss or a gradient.

    stop: the run ends in one line that names it; the last checkpoint stands. skip: what depends on it is left
    out, on every rank, with a warning that names it; the run goes on with the next rows.
    """

    stop = "stop"
    skip = "skip"


class Faults:
    """The numbers of a step that are not finite. Each rank notes its own; all of them stop or skip together.

    A step that is skipped moves no parameter and no optimiser state, counts as done for the schedule and the
    position in the data, and leaves its measurements out of the metrics.
    """

    def __init__(self, choice: NonFinite) -> None:
        self._choice = choice
        self._noted: dict[str, str] = {}
        self._skipped = 0

    @property
    def skips(self) -> bool:
        """Whether the run goes on without what is not finite."""
        return self._choice is NonFinite.skip

    def look(
        self, what: str, values: Tensor, row: Row, *, mask: Tensor | None = None, model: str = ""
    ) -> bool:
        """Note the first of ``values`` that is not finite.

        Args:
            what: what they are, e.g. "score".
            values: (B,) or (B, T).
            row: names a row.
            mask: bool, shape of ``values``: True on those that count.
            model: name of the engine that they are a loss of.

        Returns:
            Whether all of them are finite.
        """
        bad = ~values.isfinite() if mask is None else ~values.isfinite() & mask
        if not bad.any():
            return True
        place = bad.nonzero()[0].tolist()
        token = "" if len(place) == 1 else f" of token {place[1]}"
        self.note(f"the {what}{token} of {row(place[0])} is {values[tuple(place)].item()}", model=model)
        return False

    def note(self, fault: str, *, model: str = "") -> None:
        """Note a fault in words; the first one of a ``model`` is kept."""
        self._noted.setdefault(model, fault)

    def loss(self, what: str, values: Tensor, row: Row, *, model: str) -> Tensor:
        """``values``, a loss of each row or token, looked at and spoiled."""
        self.look(what, values, row, model=model)
        return self.spoiled(values, model)

    def spoiled(self, loss: Tensor, model: str) -> Tensor:
        """The loss; NaN when something of the model is not finite.

        Then the gradient is NaN too, and every rank's engine refuses the step.
        """
        return loss * torch.nan if model in self._noted else loss

    def step(self, engine: Engine, place: str) -> float | None:
        """The engine's step: its gradient norm, or None where the step is skipped. Every rank calls it.

        Args:
            engine: whose gradients are complete.
            place: names the present step, e.g. "rollout 3".

        Raises:
            FloatingPointError: the gradient is not finite, and the run is to stop; or the loss is not, and
                hangs on no parameter, so that the gradient does not show it.
        """
        try:
            norm = engine.step()
        except FloatingPointError as error:
            self._meet(place, _first(self._noted.pop(engine.name, None)) or str(error))
            self._skipped += 1
            return None
        if engine.name in self._noted:
            raise FloatingPointError(f"{place}: {self._noted[engine.name]}, and the gradient is finite")
        return norm

    def none(self, place: str) -> bool:
        """Whether no rank has noted anything since this was last asked. Every rank calls it.

        Raises:
            FloatingPointError: a rank has, and the run is to stop.
        """
        noted = next(iter(self._noted.values()), None)
        self._noted.clear()
        if not all_max(torch.tensor(int(noted is not None))).item():
            return True
        self._meet(place, _first(noted) or "")
        return False

    def report(self, metrics: Metrics) -> None:
        """Count the steps that were skipped since the last report, where they may be."""
        if self.skips:
            metrics.value("faults/skipped_steps", self._skipped)
        self._skipped = 0

    def evaluation(self, metrics: Metrics, place: str) -> Metrics:
        """The ``metrics`` of an evaluation if nothing was noted in it, else none. Every rank calls it.

        Raises:
            FloatingPointError: a rank has noted something, and the run is to stop.
        """
        finite = self.none(place)
        metrics = metrics if finite else Metrics()
        if self.skips:
            metrics.value("eval/faults/skipped", float(not finite))
        return metrics

    def _meet(self, place: str, fault: str) -> None:
        message = f"{place}: {fault}"
        if self._choice is NonFinite.stop:
            raise FloatingPointError(message)
        log.warning("skipped %s", message)


def _first(own: str | None) -> str | None:
    """What the first rank to have noted something says, on every rank."""
    for rank, noted in enumerate(gather_objects(own)):
        if noted is not None:
            return f"{noted} (rank {rank})" if world_size() > 1 else noted
    return None


def numbered(index: Tensor, what: str = "row") -> Row:
    """Names the rows of a batch by their numbers ``index`` (b,) in the data set, from 0."""
    return lambda row: f"{what} {int(index[row])}"
