"""C10: two ranks, a core each: supervised training by what DeepSpeed shards, and sampling under ZeRO-3."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from benchmarks.bench import Bench
from benchmarks.cases.models import SMALL, TINY, Size
from benchmarks.contest import Contender, Verdict, contest
from benchmarks.measure import Timing, ratio
from benchmarks.ranks import communication, gathered_sampling
from benchmarks.ranks.launch import launch
from benchmarks.results import Line, at_least

STEPS = 6
FIRST = 2
"""Steps that are not counted."""
ENGINES = ("zero1", "zero2", "zero3")
SHARES = {"zero2": 0.85, "zero3": 0.6}
"""Of the speed of plain data parallelism."""


def run(bench: Bench) -> Iterator[Line]:
    """Training, then sampling."""
    yield from training(bench)
    yield from sampling(bench)


def training(bench: Bench) -> Iterator[Line]:
    """One run an engine; the gate is that all end with the same loss."""
    size, rows, length = bench.size((SMALL, 32, 128), (TINY, 4, 12))
    once = replace(bench, rounds=1, least=1, warm_ups=0)
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        place = Path(folder)
        write_rows(place / "rows.jsonl", rows * STEPS, length)
        alone = Run(place=place, size=size, rows=rows, engine="plain", ranks=1)
        runs = [alone, *(replace(alone, engine=name, ranks=2, found=[]) for name in ("plain", *ENGINES))]
        cell = f"SFT {size.name}, {rows} rows of {length}"
        outcome = contest(once, cell, [each.contender(alone) for each in runs])
        for each in runs:
            outcome.line(each.name).values |= each.values()
        yield from outcome.lines
        for name, wanted in SHARES.items():
            share = outcome.ratio("plain, 2 ranks", f"{name}, 2 ranks")
            yield at_least(cell, f"{name} over plain on two ranks", share, wanted)


def sampling(bench: Bench) -> Iterator[Line]:
    """Greedy tokens by the product's way and by transformers' generate with DeepSpeed's hooks on."""
    name, rows, width, new = bench.size(("SMALL", 16, 32, 32), ("TINY", 2, 4, 4))
    rounds = bench.size(3, 2)
    cell = f"ZeRO-3 sampling {name}, 2×{rows} rows {width}+{new}"
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        arguments = [name, *map(str, (rows, width, new, rounds))]
        try:
            launch("benchmarks.ranks.gathered_sampling", arguments, ranks=2, folder=Path(folder))
        except RuntimeError as error:
            yield Line(cell=cell, contender="gathered once", missing=f"failed: {error}")
            return
        found = json.loads((Path(folder) / gathered_sampling.FILE).read_text(encoding="utf-8"))
    timings = {way: Timing(seconds=seconds) for way, seconds in found["seconds"].items()}
    fault = f"{found['differing']:.1%} of greedy tokens differ" if found["differing"] > 0.02 else None
    for way, timing in timings.items():
        line = Line(cell=cell, contender=way, errors={"greedy tokens": found["differing"]}, void=fault)
        line.time(timing)
        line.values["tokens/s"] = 2 * rows * new / timing.median
        yield line
    speed = None if fault else ratio(timings["every layer"], timings["gathered once"])
    yield at_least(cell, "times hooked generate's speed", speed, 3.0)


@dataclass(kw_only=True, slots=True)
class Run:
    """``rlhf sft`` under torchrun, read from its metrics; it runs once."""

    place: Path
    size: Size
    rows: int
    engine: str
    ranks: int
    threads: int | None = None
    """Of a rank; its share of ours where not given."""
    found: list[dict[str, float]] = field(default_factory=list)
    """A row a step: the run's metrics, and what its collectives took."""

    @property
    def name(self) -> str:
        """In the table."""
        return f"{self.engine}, {self.ranks} rank{'s' if self.ranks > 1 else ''}"

    def contender(self, alone: Run) -> Contender:
        """Compared with one rank."""

        def check() -> Verdict:
            gap = abs(self.metrics()[-1]["loss"] - alone.metrics()[-1]["loss"])
            return Verdict(errors={"loss": gap}, fault=f"loss off by {gap:.2g}" if not gap < 1e-3 else None)

        return Contender(name=self.name, check=check, seconds=self.seconds)

    def seconds(self) -> float:
        """Of a step, the median of all but the first two."""
        return statistics.median(row["time/step"] for row in self.metrics()[FIRST:])

    def values(self) -> dict[str, float]:
        """Tokens a second, the collectives' share of the step and bytes, and memory of a rank at most."""
        rows = self.found[FIRST:]
        if not rows:
            return {}
        spent = sum(row["collectives"] for row in rows)
        return {
            "tokens/s": statistics.median(row["throughput/tokens_per_second"] for row in rows),
            "communication share": spent / sum(row["step"] for row in rows),
            "MiB handed over a step": statistics.median(row["bytes"] for row in rows) / 2**20,
            "peak MiB of rank 0": rows[-1]["memory"] / 2**20,
        }

    def metrics(self) -> list[dict[str, float]]:
        """A row a step."""
        if not self.found:
            self.found = self._run()
        return self.found

    def _run(self) -> list[dict[str, float]]:
        with tempfile.TemporaryDirectory(dir=self.place) as name:
            folder = Path(name)
            arguments = ["sft", *self._arguments()]
            program = "benchmarks.ranks.communication"
            launch(program, arguments, ranks=self.ranks, folder=folder, threads=self.threads)
            (log,) = folder.glob("runs/*/metrics.jsonl")
            metrics = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
            spent = json.loads((folder / communication.FILE).read_text(encoding="utf-8"))
        return [row | own for row, own in zip(metrics, spent, strict=True)]

    def _arguments(self) -> list[str]:
        size = self.size
        return [
            "name=zero",
            f"data.path={self.place / 'rows.jsonl'}",
            f"engine={self.engine}",
            f"tokenizer.vocab_size={max(size.vocabulary // 8, 300)}",
            f"model.layers={size.layers}",
            f"model.hidden={size.hidden}",
            f"model.heads={size.heads}",
            f"model.intermediate={size.inner}",
            f"model.context={size.context}",
            f"batch_size={self.rows}",
            f"micro_batch_size={self.rows}",
            "epochs=1",
            "cadence.evaluate_every=0",
            "cadence.checkpoint_every=0",
        ]


def write_rows(path: Path, rows: int, length: int) -> None:
    """Prompts and responses of random numbers."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(10, 99, (rows, length), generator=generator).tolist()
    texts = [" ".join(str(word) for word in row) for row in words]
    lines = [json.dumps({"prompt": text[:6], "response": text[6:]}) + "\n" for text in texts]
    path.write_text("".join(lines), encoding="utf-8")
