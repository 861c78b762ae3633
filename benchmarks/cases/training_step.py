"""C6, G12: one optimiser step of each stage on rows of uneven lengths, by real tokens.

A stage says what its loss is, in plain torch on padded rows. From that come the padded loop and, in float64
and row by row without padding, the loss that everyone must have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.bench import Bench
from benchmarks.cases.models import Size
from benchmarks.cases.tensor_contenders import Tensors, judged, there
from benchmarks.contest import Contender, Outcome, Verdict, contest
from benchmarks.measure import peak_extra, timed
from benchmarks.results import Line, at_least
from rlhf.distributed.runtime import Runtime
from rlhf.metrics import Metrics

RATE = 1e-6
"""So small that every step's loss is the first one's."""
CLIP = 1.0
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Share of the loss that it may be off."""
Judge = Callable[[Tensors], Verdict]


class StageTrainer(Protocol):
    """One of the product's trainers."""

    def step(self) -> Metrics:
        """One optimiser step."""


class Step(Protocol):
    """A stage's step on fixed rows: texts, or pairs of texts."""

    size: Size
    micro: int
    """Texts or pairs of a forward pass."""
    dtype: torch.dtype
    """Of weights and activations."""

    @property
    def lengths(self) -> Tensor:
        """(texts or pairs, 1 or 2) tokens."""

    def prepare(self, device: torch.device) -> None:
        """What must be known before the loss."""

    def model(self) -> Any:
        """Of transformers, with the weights that all contenders start from."""

    def loss(self, model: Any, which: Sequence[int], device: torch.device) -> Tensor:
        """What these texts or pairs add to the step's loss."""

    def trainer(self, device: torch.device, *, packed: bool) -> StageTrainer:
        """The product's."""

    def given(self, folder: Path) -> dict[str, Any]:
        """For the peers: a folder with model and tokenizer is made, and the rows."""


def compare(bench: Bench, stage: str, step: Step, peers: Mapping[str, str | None]) -> Outcome:
    """Ours, packed and padded, against a padded loop and the peers, all with the same loss and tokens.

    Args:
        bench: the run.
        stage: begins the cell's name.
        step: what is done.
        peers: their names in `benchmarks.peers.functions`, and remarks.
    """
    step.prepare(bench.device)
    judge = partial(
        judged,
        right={"loss": truth(step, bench.device), "tokens": step.lengths.sum().double().reshape(1)},
        allowed=ALLOWED[step.dtype],
    )
    contenders = [
        _ours(bench, step, judge, packed=True),
        _ours(bench, step, judge, packed=False),
        _padded(bench, step, judge),
    ]
    present = [name for name in peers if bench.peers.missing(name) is None]
    given = step.given(bench.peers.path(f"{stage}_{step.size.name}".replace("/", "_"))) if present else {}
    for name, note in peers.items():
        contenders.append(there(bench, name, given, {}, note=note, once=True, judge=judge))
    cell = f"{stage} {step.size.name}, {len(step.lengths)} rows, fill {fill(step):.2f}"
    outcome = contest(
        replace(bench, budget=min(bench.budget, 10.0), least=min(bench.least, 2)), cell, contenders
    )
    tokens = step.lengths.sum()
    for line in outcome.lines:
        if line.seconds is not None:
            line.values["real tokens/s"] = float(tokens) / line.seconds
            line.values["TFLOP/s"] = step.size.flops(step.lengths.flatten()) / line.seconds / 1e12
    return outcome


def wanted(outcome: Outcome, step: Step, plain: str, free: str | None = None) -> Iterator[Line]:
    """The targets of C6, against TRL's trainer and, where it has one, its padding-free path."""
    cell = outcome.lines[0].cell
    share = fill(step)
    loop = outcome.ratio("padded loop", "rlhf")
    yield at_least(cell, f"0.9/{share:.2f} times the padded loop's speed", loop, 0.9 / share)
    yield at_least(cell, "times our own speed on padded rows", outcome.ratio("rlhf padded", "rlhf"), 1.0)
    yield at_least(cell, "times TRL's speed", outcome.ratio(plain, "rlhf"), 2.0)
    if free is not None:
        yield at_least(cell, "times TRL's padding-free speed", outcome.ratio(free, "rlhf"), 1.1)


def parts(count: int, micro: int) -> Iterator[list[int]]:
    """The padded loop's forward passes: neighbours in the rows' order."""
    for start in range(0, count, micro):
        yield list(range(start, min(start + micro, count)))


def fill(step: Step) -> float:
    """Real tokens over those that the padded loop computes, each of its passes padded to its longest."""
    lengths = step.lengths
    computed = sum(
        int(lengths[part].max()) * lengths[part].numel() for part in parts(len(lengths), step.micro)
    )
    return float(lengths.sum()) / computed


def truth(step: Step, device: torch.device) -> Tensor:
    """(1,) the loss in float64, row by row: nothing is padded but the shorter side of a pair."""
    model = step.model().double().to(device)
    with torch.no_grad():
        each = [step.loss(model, [row], device) for row in range(len(step.lengths))]
    return torch.stack(each).sum().reshape(1).cpu()


def alone(device: torch.device) -> Runtime:
    """One rank."""
    return Runtime(rank=0, world_size=1, local_rank=0, device=device)


def budget(step: Step) -> int:
    """Tokens of a packed forward pass: as many as ``micro`` rows have in the mean."""
    return -(-int(step.lengths.sum()) * step.micro // len(step.lengths))


def _ours(bench: Bench, step: Step, judge: Judge, *, packed: bool) -> Contender:
    trainer = step.trainer(bench.device, packed=packed)

    def check() -> Verdict:
        pairs = trainer.step().pairs
        rate, count = pairs["throughput/tokens_per_second"]
        tokens = rate / count * pairs["time/step"][0]
        total, rows = pairs["loss"]
        return judge({"loss": torch.tensor([total / rows]), "tokens": torch.tensor([tokens])})

    def peak() -> int | None:
        def once() -> Tensors:
            trainer.step()
            return {}

        return peak_extra(once, bench.device)

    name = "rlhf" if packed else "rlhf padded"
    return Contender(name=name, check=check, peak=peak, seconds=lambda: timed(trainer.step, bench.device))


def _padded(bench: Bench, step: Step, judge: Judge) -> Contender:
    """A plain loop over transformers' own model."""
    model = step.model().to(bench.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)

    def run() -> Tensor:
        total = torch.zeros((), device=bench.device)
        for part in parts(len(step.lengths), step.micro):
            loss = step.loss(model, part, bench.device)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return total.reshape(1)

    return Contender(
        name="padded loop",
        check=lambda: judge({"loss": run()}),
        peak=lambda: peak_extra(lambda: {"": run()}, bench.device),
        seconds=lambda: timed(run, bench.device),
    )
