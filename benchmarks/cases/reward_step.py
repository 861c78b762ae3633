"""C6: a step of a reward model."""

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
from benchmarks.cases.pairs import Pairs
from benchmarks.cases.rows import padded
from benchmarks.cases.tokenizer import save_with_tokenizer
from benchmarks.cases.training_step import CLIP, RATE, alone, budget
from benchmarks.results import Line
from rlhf.algorithms.preferences import BradleyTerry
from rlhf.distributed.engine import TorchEngine
from rlhf.models.readouts import LastToken
from rlhf.trainers.optimizers import AdamW
from rlhf.trainers.reward_model import RewardModelTrainer
from rlhf.trainers.schedules import Constant

SHAPES = [(TWO, 32, 384, 16), (SMALL, 16, 256, 16), (SMOL, 16, 64, 16)]
"""Size, pairs, longest, and pairs of a forward pass."""


def run(bench: Bench) -> Iterator[Line]:
    """Against a padded loop and TRL's trainer, which has no padding-free batches here."""
    for size, rows, longest, micro in bench.size(SHAPES, [(TINY, 4, 24, 2)]):
        step = RewardStep(size=size, pairs=Pairs.lognormal(rows, longest, size.vocabulary), micro=micro)
        outcome = training_step.compare(bench, "reward", step, {"trl reward": "no padding-free batches"})
        yield from outcome.lines
        yield from training_step.wanted(outcome, step, "trl reward")


@dataclass(kw_only=True, slots=True)
class RewardStep:
    """Mean −log σ of the better text's score over the worse one's."""

    size: Size
    pairs: Pairs
    micro: int
    dtype: torch.dtype = torch.float32

    @property
    def lengths(self) -> Tensor:
        """(pairs, 2) tokens."""
        return self.pairs.lengths

    def prepare(self, device: torch.device) -> None:
        """Nothing."""

    def model(self) -> Any:
        """A random classifier with one label."""
        return self.size.classifier()

    def loss(self, model: Any, which: Sequence[int], device: torch.device) -> Tensor:
        """Of these pairs, over the number of all; both sides in one forward pass."""
        better, worse = self.pairs.texts
        tokens, mask = padded([*(better[i] for i in which), *(worse[i] for i in which)], device)
        hidden = model.model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        last = hidden[torch.arange(len(tokens)), mask.sum(1) - 1]
        chosen, rejected = model.score(last).squeeze(1).chunk(2)
        return F.softplus(rejected - chosen).sum() / len(better)

    def trainer(self, device: torch.device, *, packed: bool) -> RewardModelTrainer:
        """The product's, with its plain engine."""
        model = self.size.scalar(packed=packed)
        return RewardModelTrainer(
            engine=TorchEngine(model.to(device), AdamW(lr=RATE)(model), name="reward", clip=CLIP),
            train=self.pairs.data().compared(),
            test=None,
            loss=BradleyTerry(),
            readout=LastToken(),
            schedule=Constant(),
            batch_size=len(self.pairs.prompts),
            micro_batch_size=self.micro,
            micro_batch_tokens=budget(self) if packed else None,
            total=1_000_000,
            seed=0,
            runtime=alone(device),
            export=lambda folder: None,
        )

    def given(self, folder: Path) -> dict[str, Any]:
        """Model and both sides."""
        save_with_tokenizer(self.model(), self.size.vocabulary, folder)
        chosen, rejected = self.pairs.texts
        return {"model": str(folder), "chosen": chosen, "rejected": rejected, "micro": self.micro}
