"""C6: a step of supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bench import Bench
from benchmarks.cases import training_step
from benchmarks.cases.models import SMALL, SMOL, TINY, TWO, Size
from benchmarks.cases.rows import lognormal, padded, random_rows
from benchmarks.cases.tokenizer import save_with_tokenizer
from benchmarks.cases.training_step import CLIP, RATE, alone, budget
from benchmarks.results import Line
from rlhf.data.encoding import Encoded
from rlhf.data.fitting import Report
from rlhf.data.loaded import SupervisedSet
from rlhf.distributed.engine import TorchEngine
from rlhf.trainers.optimizers import AdamW
from rlhf.trainers.schedules import Constant
from rlhf.trainers.supervised import SupervisedTrainer

SHAPES = [(TWO, 64, 384, 32), (SMALL, 32, 256, 32), (SMOL, 32, 64, 32)]
"""Size, rows, longest, and rows of a forward pass."""


def run(bench: Bench) -> Iterator[Line]:
    """Against a padded loop and TRL's trainer, with and without its padding-free batches."""
    for size, rows, longest, micro in bench.size(SHAPES, [(TINY, 8, 24, 2)]):
        step = SupervisedStep.lognormal(size, rows, longest, micro)
        outcome = training_step.compare(bench, "SFT", step, {"trl sft": None, "trl sft padding-free": None})
        yield from outcome.lines
        yield from training_step.wanted(outcome, step, "trl sft", "trl sft padding-free")


@dataclass(kw_only=True, slots=True)
class SupervisedStep:
    """Mean −log π over all tokens but the first of each row."""

    size: Size
    rows: list[list[int]]
    micro: int
    dtype: torch.dtype = torch.float32

    @staticmethod
    def lognormal(size: Size, rows: int, longest: int, micro: int) -> SupervisedStep:
        """Random tokens."""
        generator = torch.Generator().manual_seed(0)
        made = random_rows(lognormal(rows, longest, generator), size.vocabulary, generator)
        return SupervisedStep(size=size, rows=made, micro=micro)

    @property
    def lengths(self) -> Tensor:
        """(rows, 1) tokens."""
        return torch.tensor([[len(row)] for row in self.rows])

    def prepare(self, device: torch.device) -> None:
        """Nothing."""

    def model(self) -> Any:
        """A random causal language model."""
        return self.size.causal_lm()

    def loss(self, model: Any, which: Sequence[int], device: torch.device) -> Tensor:
        """Of these rows, over the targets of all."""
        tokens, mask = padded([self.rows[i] for i in which], device)
        logits = model(input_ids=tokens, attention_mask=mask.long()).logits[:, :-1]
        labels = tokens[:, 1:].masked_fill(~mask[:, 1:], -100)
        total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        return total / int((self.lengths - 1).sum())

    def trainer(self, device: torch.device, *, packed: bool) -> SupervisedTrainer:
        """The product's, with its plain engine."""
        actor = self.size.actor(packed=packed)
        encoded = [Encoded(tokens=row, targets=[False] + [True] * (len(row) - 1)) for row in self.rows]
        count = len(encoded)
        report = Report(source="benchmark", read=count, kept=count)
        return SupervisedTrainer(
            engine=TorchEngine(actor.to(device), AdamW(lr=RATE)(actor), name="actor", clip=CLIP),
            train=SupervisedSet(encoded=encoded, pad_id=0, report=report),
            test=None,
            schedule=Constant(),
            batch_size=count,
            micro_batch_size=self.micro,
            micro_batch_tokens=budget(self) if packed else None,
            total=1_000_000,
            seed=0,
            runtime=alone(device),
            export=lambda folder: None,
        )

    def given(self, folder: Path) -> dict[str, Any]:
        """Model and rows."""
        save_with_tokenizer(self.model(), self.size.vocabulary, folder)
        return {"model": str(folder), "rows": self.rows, "micro": self.micro}
