"""C6, G8: one optimiser step of supervised fine-tuning, rows of lognormal lengths, by real tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bench import Bench
from benchmarks.cases.models import MIDDLE, SMALL, TINY, Size
from benchmarks.cases.tensor_contenders import judged, there
from benchmarks.cases.tokenizer import save_with_tokenizer
from benchmarks.contest import Contender, Verdict, contest
from benchmarks.measure import timed
from benchmarks.results import Line, at_least
from rlhf.data.encoding import Encoded
from rlhf.data.fitting import Report
from rlhf.data.loaded import SupervisedSet
from rlhf.distributed.engine import TorchEngine
from rlhf.distributed.runtime import Runtime
from rlhf.trainers.optimizers import AdamW
from rlhf.trainers.schedules import Constant
from rlhf.trainers.supervised import SupervisedTrainer

FILL = 0.35
"""Mean length over the longest."""
RATE = 1e-6
"""So small that every step's loss is the first one's."""


def run(bench: Bench) -> Iterator[Line]:
    """Ours against a padded loop and TRL's trainer, with and without its padding-free batches."""
    for size, rows, longest in bench.size([(SMALL, 32, 384), (MIDDLE, 16, 384)], [(TINY, 8, 24)]):
        step = Step.lognormal(size, rows, longest, micro=max(rows // 4, 2))
        cell = f"SFT {size.name}, {rows} rows, fill {step.fill:.2f}"
        right = {"loss": step.loss().reshape(1)}
        given = step.given(bench)
        contenders = [
            step.ours(bench, right, packed=True),
            step.ours(bench, right, packed=False),
            step.padded(bench, right),
        ]
        for name in ("trl sft", "trl sft padding-free"):
            contenders.append(there(bench, name, given, right))
        outcome = contest(replace(bench, least=min(bench.least, 2)), cell, contenders)
        step.value(outcome.lines)
        yield from outcome.lines
        wanted = 0.9 / step.fill
        yield at_least(cell, "times the padded loop's speed", outcome.ratio("padded loop", "rlhf"), wanted)
        sorted_rows = outcome.ratio("rlhf padded", "rlhf")
        yield at_least(cell, "times our own speed on padded rows", sorted_rows, 1.0)
        yield at_least(cell, "times TRL's speed", outcome.ratio("trl sft", "rlhf"), 2.0)
        free = outcome.ratio("trl sft padding-free", "rlhf")
        yield at_least(cell, "times TRL's padding-free speed", free, 1.1)


@dataclass(kw_only=True, slots=True)
class Step:
    """A model and the rows of one step."""

    size: Size
    rows: list[list[int]]
    micro: int
    """Rows of a forward pass."""

    @staticmethod
    def lognormal(size: Size, rows: int, longest: int, micro: int) -> Step:
        """Lengths between 2 and ``longest`` with the mean ``FILL`` of it; one row is the longest."""
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(rows, generator=generator, dtype=torch.float64).mul(0.6).exp()
        lengths = (drawn * (FILL * longest / float(drawn.mean()))).round().long().clamp(2, longest)
        lengths[0] = longest
        made = [
            torch.randint(3, size.vocabulary, (int(length),), generator=generator).tolist()
            for length in lengths
        ]
        return Step(size=size, rows=made, micro=micro)

    @property
    def lengths(self) -> Tensor:
        """(rows,) tokens."""
        return torch.tensor([len(row) for row in self.rows])

    @property
    def fill(self) -> float:
        """Real tokens over those of rows padded to the longest."""
        return float(self.lengths.double().mean() / self.lengths.max())

    def loss(self) -> Tensor:
        """Mean −log π over all tokens but the first of each row, in float64."""
        model = self.size.causal_lm().double()
        with torch.no_grad():
            sums = [
                F.cross_entropy(
                    model(torch.tensor([row])).logits[0, :-1], torch.tensor(row[1:]), reduction="sum"
                )
                for row in self.rows
            ]
        return torch.stack(sums).sum() / (self.lengths - 1).sum()

    def given(self, bench: Bench) -> dict[str, Any]:
        """For the peers: a folder with model and tokenizer, and the rows."""
        folder = bench.peers.path(f"model_{self.size.hidden}")
        save_with_tokenizer(self.size.causal_lm(), self.size.vocabulary, folder)
        return {
            "model": str(folder),
            "tokens": torch.tensor([token for row in self.rows for token in row]),
            "lengths": self.lengths,
            "micro": self.micro,
        }

    def ours(self, bench: Bench, right: dict[str, Tensor], *, packed: bool) -> Contender:
        """The product's own trainer with its plain engine.

        Packed, micro-batches hold as many tokens as `micro` rows have on average; padded, `micro` rows.
        """
        actor = self.size.actor(packed=packed)
        budget = -(-int(self.lengths.sum()) * self.micro // len(self.rows))
        trainer = SupervisedTrainer(
            engine=TorchEngine(actor, AdamW(lr=RATE)(actor), name="actor", clip=1.0),
            train=_data(self.rows),
            test=None,
            schedule=Constant(),
            batch_size=len(self.rows),
            micro_batch_size=self.micro,
            micro_batch_tokens=budget if packed else None,
            total=1_000_000,
            seed=0,
            runtime=Runtime(rank=0, world_size=1, local_rank=0, device=bench.device),
            export=lambda folder: None,
        )

        def check() -> Verdict:
            total, count = trainer.step().pairs["loss"]
            return judged({"loss": torch.tensor([float(total) / float(count)])}, right)

        name = "rlhf" if packed else "rlhf padded"
        return Contender(name=name, check=check, seconds=lambda: timed(trainer.step, bench.device))

    def padded(self, bench: Bench, right: dict[str, Tensor]) -> Contender:
        """A plain loop over transformers' own model; micro-batches in the rows' order, each padded."""
        model = self.size.causal_lm().to(bench.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
        count = int((self.lengths - 1).sum())

        def step() -> Tensor:
            total = torch.zeros((), device=bench.device)
            for start in range(0, len(self.rows), self.micro):
                tokens, mask = _padded(self.rows[start : start + self.micro], bench.device)
                logits = model(input_ids=tokens, attention_mask=mask.long()).logits[:, :-1].float()
                labels = tokens[:, 1:].masked_fill(~mask[:, 1:], -100)
                loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / count
                loss.backward()
                total += loss.detach()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return total.reshape(1)

        return Contender(
            name="padded loop",
            check=lambda: judged({"loss": step()}, right),
            seconds=lambda: timed(step, bench.device),
        )

    def value(self, lines: list[Line]) -> None:
        """Real tokens a second, and TFLOP/s of the products that real tokens need."""
        for line in lines:
            if line.seconds is not None:
                line.values["real tokens/s"] = float(self.lengths.sum()) / line.seconds
                line.values["TFLOP/s"] = self.size.flops(self.lengths) / line.seconds / 1e12


def _data(rows: list[list[int]]) -> SupervisedSet:
    encoded = [Encoded(tokens=row, targets=[False] + [True] * (len(row) - 1)) for row in rows]
    return SupervisedSet(
        encoded=encoded, pad_id=0, report=Report(source="benchmark", read=len(rows), kept=len(rows))
    )


def _padded(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(len(row) for row in rows)
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return tokens, torch.arange(longest, device=device) < lengths.unsqueeze(1)
