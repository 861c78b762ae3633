"""C6, G12: a step of direct preference optimisation, the reference's log-probs known before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bench import Bench
from benchmarks.cases import training_step
from benchmarks.cases.models import BILLION, SMALL, SMOL, TINY, TWO, Size
from benchmarks.cases.pairs import Pairs
from benchmarks.cases.rows import padded
from benchmarks.cases.tokenizer import save_with_tokenizer
from benchmarks.cases.training_step import CLIP, RATE, alone, budget
from benchmarks.results import Line, at_least
from rlhf.algorithms.preference_losses import DPO
from rlhf.distributed.engine import TorchEngine
from rlhf.trainers.feedback import PairFeedback
from rlhf.trainers.optimizers import AdamW
from rlhf.trainers.preference import PreferenceTrainer
from rlhf.trainers.schedules import Constant

SHAPES = [(TWO, 32, 384, 16), (SMALL, 16, 256, 16), (SMOL, 16, 64, 16)]
"""Size, pairs, longest, and pairs of a forward pass."""
BETA = 0.1
NOTES = {"trl dpo": "TRL 1.16 has switched its padding-free batches off"}


def run(bench: Bench) -> Iterator[Line]:
    """C6: against a padded loop and TRL's trainer."""
    for size, rows, longest, micro in bench.size(SHAPES, [(TINY, 4, 24, 2)]):
        step = PreferenceStep.lognormal(size, rows, longest, micro)
        outcome = training_step.compare(bench, "DPO", step, NOTES)
        yield from outcome.lines
        yield from training_step.wanted(outcome, step, "trl dpo")


def run_large(bench: Bench) -> Iterator[Line]:
    """G12: 1.5 thousand million weights in bf16, pairs of up to 1024 tokens a side."""
    size, rows, longest, micro = bench.size((BILLION, 16, 1024, 4), (TINY, 4, 24, 2))
    step = PreferenceStep.lognormal(size, rows, longest, micro)
    step.dtype = bench.size(torch.bfloat16, torch.float32)
    outcome = training_step.compare(bench, "DPO", step, NOTES)
    yield from outcome.lines
    cell = outcome.lines[0].cell
    yield at_least(cell, "times TRL's speed", outcome.ratio("trl dpo", "rlhf"), 1.5)
    theirs, ours = outcome.line("trl dpo").peak_bytes, outcome.line("rlhf").peak_bytes
    share = theirs / ours if theirs and ours else None
    yield at_least(cell, "TRL's memory over ours", share, 2.0)


@dataclass(kw_only=True, slots=True)
class PreferenceStep:
    """Mean −log σ of β times how much more the policy has moved towards the better response."""

    size: Size
    pairs: Pairs
    micro: int
    dtype: torch.dtype = torch.float32
    known: Tensor = field(default_factory=lambda: torch.zeros(0, 2))
    """(pairs, 2) the reference's log-probs of the responses."""

    @staticmethod
    def lognormal(size: Size, rows: int, longest: int, micro: int) -> PreferenceStep:
        """Random tokens; the reference is another random model, so that the loss is not log 2."""
        return PreferenceStep(size=size, pairs=Pairs.lognormal(rows, longest, size.vocabulary), micro=micro)

    @property
    def lengths(self) -> Tensor:
        """(pairs, 2) tokens."""
        return self.pairs.lengths

    def model(self) -> Any:
        """A random causal language model."""
        return self.size.causal_lm().to(self.dtype)

    def reference(self) -> Any:
        """Another one."""
        return self.size.causal_lm(seed=1).to(self.dtype)

    def prepare(self, device: torch.device) -> None:
        """The reference's log-probs, in float64 and pair by pair."""
        model = self.reference().double().to(device)
        with torch.no_grad():
            each = [self._logprobs(model, [row], device) for row in range(len(self.lengths))]
        self.known = torch.stack([torch.cat(pair) for pair in each]).float()

    def loss(self, model: Any, which: Sequence[int], device: torch.device) -> Tensor:
        """Of these pairs, over the number of all; both sides in one forward pass."""
        chosen, rejected = self._logprobs(model, which, device)
        known = self.known[list(which)].to(device)
        moved = (chosen - known[:, 0]) - (rejected - known[:, 1])
        return F.softplus(-BETA * moved).sum() / len(self.known)

    def trainer(self, device: torch.device, *, packed: bool) -> PreferenceTrainer:
        """The product's, with its plain engine."""
        actor = self.size.actor(packed=packed).to(device, self.dtype)
        feedback = PairFeedback(self.pairs.data(), DPO(beta=BETA))
        feedback.reference = self.known
        return PreferenceTrainer(
            engine=TorchEngine(actor, AdamW(lr=RATE)(actor), name="actor", clip=CLIP),
            train=feedback,
            test=None,
            schedule=Constant(),
            batch_size=len(feedback),
            micro_batch_size=self.micro,
            micro_batch_tokens=budget(self) if packed else None,
            total=1_000_000,
            seed=0,
            runtime=alone(device),
            export=lambda folder: None,
        )

    def given(self, folder: Path) -> dict[str, Any]:
        """Model, reference, prompts and both responses."""
        save_with_tokenizer(self.model(), self.size.vocabulary, folder / "model")
        save_with_tokenizer(self.reference(), self.size.vocabulary, folder / "reference")
        return {
            "model": str(folder / "model"),
            "reference": str(folder / "reference"),
            "prompt": self.pairs.prompts,
            "chosen": self.pairs.chosen,
            "rejected": self.pairs.rejected,
            "beta": BETA,
            "micro": self.micro,
            "bf16": self.dtype == torch.bfloat16,
        }

    def _logprobs(self, model: Any, which: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """(b,) sums of log π over both responses."""
        better, worse = self.pairs.texts
        prompts = [len(self.pairs.prompts[i]) for i in which] * 2
        tokens, mask = padded([*(better[i] for i in which), *(worse[i] for i in which)], device)
        logits = model(input_ids=tokens, attention_mask=mask.long()).logits[:, :-1]
        wide = logits if logits.dtype == torch.float64 else logits.float()
        taken = wide.log_softmax(2).gather(2, tokens[:, 1:, None]).squeeze(2)
        columns = torch.arange(1, tokens.shape[1], device=device)
        scored = mask[:, 1:] & (columns >= torch.tensor(prompts, device=device)[:, None])
        chosen, rejected = torch.where(scored, taken, 0.0).sum(1).chunk(2)
        return chosen, rejected
