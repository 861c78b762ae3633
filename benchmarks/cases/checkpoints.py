"""C11: writing and reading a checkpoint, exporting a model, and whether a resumed run is the same run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.bench import Bench
from benchmarks.cases.models import SMALL, TINY, Size
from benchmarks.contest import Contender, Verdict, contest
from benchmarks.measure import timed
from benchmarks.results import Line, at_most
from rlhf.distributed import checkpoints
from rlhf.distributed.engine import TorchEngine
from rlhf.trainers.optimizers import AdamW


def run(bench: Bench) -> Iterator[Line]:
    """Ours, with a manifest and synced, against one torch.save of the same tensors."""
    size = bench.size(SMALL, TINY)
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        place = Path(folder)
        engine = _trained(size, 2)
        outcome = contest(
            bench,
            f"save {size.name}",
            [
                Contender(
                    name="rlhf",
                    seconds=lambda: _save(bench, engine, place),
                    check=lambda: _exact(size, place),
                ),
                Contender(name="torch.save", seconds=lambda: _plain(bench, engine, place)),
            ],
        )
        outcome.line("rlhf").values["bytes"] = float(_bytes(place / "checkpoints"))
        yield from outcome.lines
        loaded = _engine(size, seed=1)
        saved = checkpoints.latest(place / "checkpoints")
        assert saved is not None
        read = [Contender(name="rlhf", seconds=lambda: timed(lambda: loaded.load(saved), bench.device))]
        yield from contest(bench, f"load {size.name}", read).lines
        yield at_most(
            f"resume {size.name}",
            "parameters that differ after resuming",
            float(_differing(size, place)),
            0.0,
        )


def _engine(size: Size, seed: int = 0) -> TorchEngine:
    actor = size.actor(seed)
    return TorchEngine(actor, AdamW(lr=1e-3)(actor), name="actor", clip=1.0)


def _trained(size: Size, steps: int, engine: TorchEngine | None = None, first: int = 0) -> TorchEngine:
    """After these steps; the batch of a step depends on its number alone."""
    engine = engine or _engine(size)
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(0, size.vocabulary, (4, 16), generator=generator)
        found = engine(tokens, torch.ones_like(tokens, dtype=torch.bool), 1)
        engine.backward(-found.logprobs.mean())
        engine.step()
    return engine


def _save(bench: Bench, engine: TorchEngine, place: Path) -> float:
    def write(folder: Path) -> None:
        engine.save(folder)

    return timed(lambda: checkpoints.write(place / "checkpoints", 2, write, keep=1), bench.device)


def _plain(bench: Bench, engine: TorchEngine, place: Path) -> float:
    return timed(lambda: torch.save(engine.module.state_dict(), place / "plain.pt"), bench.device)


def _exact(size: Size, place: Path) -> Verdict:
    differing = _differing(size, place)
    fault = f"{differing} parameters differ after resuming" if differing else None
    return Verdict(errors={"parameters": float(differing)}, fault=fault)


def _differing(size: Size, place: Path) -> int:
    """Parameters in which 2 steps, a checkpoint and 2 more are not bit for bit 4 steps."""
    straight = _trained(size, 4)
    half = _trained(size, 2)
    folder = checkpoints.write(place / "resumed", 2, half.save, keep=1)
    other = _engine(size, seed=9)
    other.load(folder)
    resumed = _trained(size, 2, other, first=2)
    pairs = zip(straight.module.parameters(), resumed.module.parameters(), strict=True)
    return sum(not torch.equal(a, b) for a, b in pairs)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
