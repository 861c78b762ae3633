"""G11: from training to sampling and back, between an optimiser step and the first token."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.bench import Bench
from benchmarks.cases.models import BILLION, TINY
from benchmarks.contest import Contender, Verdict, contest
from benchmarks.measure import timed
from benchmarks.results import Line, at_most
from rlhf.cli.pieces import copy_for_sampling, sampling_actor
from rlhf.distributed import runtime
from rlhf.distributed.engine_config import EngineConfig, Plain, Precision, ZeRO
from rlhf.distributed.gathering import full_state
from rlhf.models.actor import Actor
from rlhf.trainers.optimizers import AdamW

LIMIT = 0.05
"""Seconds."""


def run(bench: Bench) -> Iterator[Line]:
    """By engine: what is trained is what samples, or a copy is refreshed from its shards."""
    half = Precision.bfloat16
    engines: dict[str, EngineConfig] = {
        "ZeRO-1": ZeRO(stage=1, precision=half),
        "ZeRO-3": ZeRO(stage=3, precision=half),
    }
    tiny: dict[str, EngineConfig] = {"plain": Plain()}
    runtime.start()
    try:
        for name, engine in bench.size(engines, tiny).items():
            yield from _engine(bench, name, engine)
    finally:
        runtime.stop()


def _engine(bench: Bench, name: str, config: EngineConfig) -> Iterator[Line]:
    size = bench.size(BILLION, TINY)
    actor = Actor(copy.deepcopy(size.causal_lm()))
    plain = copy_for_sampling(actor, config)
    optimizer = AdamW(lr=1e-6)(actor)
    engine = config.train(actor, optimizer, "actor")
    current = sampling_actor(engine, plain)

    def there_and_back() -> None:
        current().eval()
        engine.module.train()

    def check() -> Verdict:
        """The sampler's weights are the trained ones, bit for bit."""
        there_and_back()
        trained, sampling = full_state(engine.module), full_state(current())
        off = sum(not torch.equal(trained[key].to(sampling[key].dtype), sampling[key]) for key in trained)
        return Verdict(errors={"weights": float(off)}, fault=f"{off} weights differ" if off else None)

    ours = Contender(name="rlhf", check=check, seconds=lambda: timed(there_and_back, bench.device))
    cell = f"{size.name} {name}"
    outcome = contest(replace(bench, rounds=5, least=3), cell, [ours])
    copies = 0.0 if current() is engine.module else 1.0
    outcome.line("rlhf").values["extra copies of the weights"] = copies
    yield from outcome.lines
    yield at_most(cell, "seconds", outcome.line("rlhf").seconds, LIMIT)
    yield at_most(cell, "extra copies of the weights", copies, 0.0)
