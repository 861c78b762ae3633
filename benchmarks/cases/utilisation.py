"""G8: model flops utilisation of a supervised step, rows of full length, activations recomputed."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.bench import Bench
from benchmarks.cases.models import BILLION, TINY
from benchmarks.contest import Contender, Verdict, contest
from benchmarks.measure import timed
from benchmarks.results import Line, at_least
from rlhf.models.actor import Actor
from rlhf.trainers.optimizers import AdamW

PEAK = 989.0
"""TFLOP/s of an H100 in bf16, as its maker says."""


def run(bench: Bench) -> Iterator[Line]:
    """One step over 8192 tokens in bf16, beside a product of 8192³ in the same run."""
    size, rows, length = bench.size((BILLION, 4, 2048), (TINY, 2, 16))
    edge = bench.size(8192, 64)
    with torch.device(bench.device):
        model = size.causal_lm().to(bench.device, torch.bfloat16)
    actor = Actor(model, gradient_checkpointing=True).train()
    optimizer = AdamW(lr=1e-6)(actor)
    tokens = torch.randint(0, size.vocabulary, (rows, length), device=bench.device)
    real = torch.ones_like(tokens, dtype=torch.bool)
    losses: list[float] = []

    def step() -> None:
        loss = -actor(tokens, real, 1).logprobs.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))

    def check() -> Verdict:
        """Random weights know nothing: the loss is near log V."""
        step()
        gap = abs(losses[-1] - float(torch.tensor(float(size.vocabulary)).log()))
        return Verdict(errors={"loss": gap}, fault=f"loss off by {gap:.2g}" if not gap < 0.5 else None)

    a = torch.randn(edge, edge, device=bench.device, dtype=torch.bfloat16)
    ceiling = Contender(name="floor: a product", seconds=lambda: timed(lambda: a @ a, bench.device))
    ours = Contender(name="rlhf", check=check, seconds=lambda: timed(step, bench.device))
    cell = f"{size.name} {rows}×{length} bf16"
    outcome = contest(bench, cell, [ceiling, ours])
    flops = {"rlhf": size.flops(torch.full((rows,), length)), "floor: a product": 2.0 * edge**3}
    for line in outcome.lines:
        if line.seconds is not None:
            line.values["TFLOP/s"] = flops[line.contender] / line.seconds / 1e12
    yield from outcome.lines
    speed = outcome.line("rlhf").values.get("TFLOP/s")
    yield at_least(cell, f"share of {PEAK:.0f} TFLOP/s", None if speed is None else speed / PEAK, 0.45)
