"""G11: from training to sampling and back, between an optimiser step and the first token."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from benchmarks.bench import Bench
from benchmarks.cases.models import BILLION, TINY
from benchmarks.contest import Contender, Verdict, contest
from benchmarks.measure import timed
from benchmarks.results import Line, at_most
from rlhf.batch import PromptBatch
from rlhf.cli.pieces import copy_for_sampling, sampling_actor
from rlhf.distributed import runtime
from rlhf.distributed.engine import Engine
from rlhf.distributed.engine_config import EngineConfig, Plain, Precision, ZeRO
from rlhf.distributed.gathering import full_state
from rlhf.models.actor import Actor
from rlhf.rollout.decoding import Sampling
from rlhf.rollout.graphs import Graphs
from rlhf.rollout.noise import row_noise
from rlhf.rollout.sampler import Sampler
from rlhf.trainers.optimizers import AdamW

LIMIT = 0.05
"""Seconds."""


def run(bench: Bench) -> Iterator[Line]:
    """By engine: what is trained is what samples, or a copy is refreshed from its shards.

    Steps of decoding that were captured before the update are replayed after it: none is captured anew.
    """
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

    graphs = Graphs()
    rollout = _rollout(graphs, bench, size.vocabulary)

    def there_and_back() -> None:
        current().eval()
        engine.module.train()

    def check() -> Verdict:
        """The sampler's weights are the trained ones, bit for bit, and stand where they were captured."""
        rollout(current())
        captured = graphs.captures
        _update(engine)
        rollout(current())
        again = graphs.captures - captured
        trained, sampling = full_state(engine.module), full_state(current())
        off = sum(not torch.equal(trained[key].to(sampling[key].dtype), sampling[key]) for key in trained)
        fault = f"{off} weights differ" if off else f"{again} steps captured again" if again else None
        return Verdict(errors={"weights": float(off), "captured again": float(again)}, fault=fault)

    ours = Contender(name="rlhf", check=check, seconds=lambda: timed(there_and_back, bench.device))
    cell = f"{size.name} {name}"
    outcome = contest(replace(bench, rounds=5, least=3), cell, [ours])
    copies = 0.0 if current() is engine.module else 1.0
    outcome.line("rlhf").values["extra copies of the weights"] = copies
    yield from outcome.lines
    yield at_most(cell, "seconds", outcome.line("rlhf").seconds, LIMIT)
    yield at_most(cell, "extra copies of the weights", copies, 0.0)


def _rollout(graphs: Graphs, bench: Bench, vocabulary: int) -> Callable[[Actor], object]:
    """Samples a few tokens after a few prompts, always the same ones."""
    number = torch.arange(4)
    tokens = torch.randint(3, vocabulary, (4, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    prompts = PromptBatch(tokens=tokens, mask=mask, index=number, group=number).to(bench.device)
    noise = row_noise(number, 8, 0, "benchmark").to(bench.device)
    sampler = Sampler(decoding=Sampling(max_new_tokens=8), end_ids=[vocabulary], pad_id=0, graphs=graphs)
    return lambda actor: sampler.sample(actor, prompts, noise)


def _update(engine: Engine) -> None:
    """One optimiser step, on any gradient."""
    tokens = torch.arange(3, 11, device=next(engine.module.parameters()).device).unsqueeze(0)
    found = engine(tokens, torch.ones_like(tokens, dtype=torch.bool), 1)
    engine.backward(-found.logprobs.sum())
    engine.step()
