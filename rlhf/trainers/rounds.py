"""The prefixes that a student learns on: those of the newest round, or of several, aggregated (DAgger)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import torch

from rlhf.batch import Prefixes, Rollout, concatenate
from rlhf.distributed.collectives import gather_objects, is_main
from rlhf.distributed.runtime import Runtime
from rlhf.seeding import generator
from rlhf.trainers.micro_batches import dealt

FILE = "prefixes.pt"
"""Of a checkpoint: the rounds that later ones learn from too."""


class Rounds:
    """The last rounds, each with the rows of all ranks in the order of their prompts, on the CPU.

    Every rank holds all rows: which of them make a step does not depend on how many ranks there are.
    """

    def __init__(self, keep: int | None, *, seed: int, runtime: Runtime) -> None:
        """Start empty.

        Args:
            keep: rounds that are learnt from; None keeps all.
            seed: of the order in which rows are visited.
            runtime: this rank among the others.
        """
        self._keep, self._seed, self._runtime = keep, seed, runtime
        self._kept: list[Prefixes] = []

    def __len__(self) -> int:
        """Rows."""
        return sum(map(len, self._kept))

    def add(self, own: Prefixes) -> None:
        """Take in a round, ``own`` of this rank, and forget what is over; all ranks call it together."""
        whole = joined(gather_objects(own.to(torch.device("cpu"))))
        self._kept.append(whole.rows(whole.rollout.group.argsort(stable=True)))
        if self._keep is not None:
            del self._kept[: -self._keep]

    def batches(self, number: int, steps: int, size: int) -> Iterator[Prefixes]:
        """This rank's rows of each step of round ``number``: all are visited before one comes again.

        Args:
            number: decides the order.
            steps: batches.
            size: rows of one, over all ranks.
        """
        rows, wanted = joined(self._kept), steps * size
        stream = generator(self._seed, "distillation", number)
        epochs = [torch.randperm(len(rows), generator=stream) for _ in range(-(-wanted // len(rows)))]
        sizes = rows.rollout.attention_mask.sum(1)
        for index in torch.cat(epochs)[:wanted].split(size):
            own = dealt(sizes[index].tolist(), self._runtime.rank, self._runtime.world_size)
            yield rows.rows(index[own]).trimmed().to(self._runtime.device)

    def save(self, folder: Path) -> None:
        """Write what later rounds learn from; it is the same on every rank."""
        if not is_main():
            return
        later = self._kept if self._keep is None else self._kept[1 - self._keep :][: self._keep - 1]
        parts = [
            {field.name: getattr(rows.rollout, field.name) for field in fields(rows.rollout)}
            | {"by_teacher": rows.by_teacher}
            for rows in later
        ]
        torch.save(parts, folder / FILE)

    def load(self, folder: Path) -> None:
        """Continue from :meth:`save`."""
        self._kept = [
            Prefixes(by_teacher=parts.pop("by_teacher"), rollout=Rollout(**parts))
            for parts in torch.load(folder / FILE, weights_only=True)
        ]


def joined(parts: Sequence[Prefixes]) -> Prefixes:
    """All rows, padded to one width."""
    prompt = max(part.rollout.prompt_mask.shape[1] for part in parts)
    response = max(part.rollout.mask.shape[1] for part in parts)
    return concatenate([part.widened(prompt, response) for part in parts])
