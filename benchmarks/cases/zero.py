"""C10: supervised training on two ranks, a core each, by what DeepSpeed shards; and on one with both."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from benchmarks.bench import Bench
from benchmarks.cases.models import SMALL, TINY, Size
from benchmarks.contest import Contender, Verdict, contest
from benchmarks.results import Line, at_least

STEPS = 6
ENGINES = ("zero1", "zero2", "zero3")
SHARES = {"zero2": 0.85, "zero3": 0.6}
"""Of the speed of plain data parallelism."""
ROOT = Path(__file__).parents[2]


def run(bench: Bench) -> Iterator[Line]:
    """One run an engine; the gate is that all end with the same loss."""
    size, rows, length = bench.size((SMALL, 32, 128), (TINY, 4, 12))
    once = replace(bench, rounds=1, least=1, warm_ups=0)
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        place = Path(folder)
        _write_rows(place / "rows.jsonl", size, rows * STEPS, length)
        alone = Run(place=place, size=size, rows=rows, engine="plain", ranks=1)
        runs = [alone, *(replace(alone, engine=name, ranks=2, found=[]) for name in ("plain", *ENGINES))]
        cell = f"SFT {size.name}, {rows} rows of {length}"
        outcome = contest(once, cell, [each.contender(alone) for each in runs])
        yield from outcome.lines
        for name, wanted in SHARES.items():
            share = outcome.ratio("plain, 2 ranks", f"{name}, 2 ranks")
            yield at_least(cell, f"{name} over plain on two ranks", share, wanted)


@dataclass(kw_only=True, slots=True)
class Run:
    """``rlhf sft`` under torchrun, read from its metrics; it runs once."""

    place: Path
    size: Size
    rows: int
    engine: str
    ranks: int
    found: list[dict[str, float]] = field(default_factory=list)

    def contender(self, alone: Run) -> Contender:
        """Compared with one rank."""

        def check() -> Verdict:
            gap = abs(self.metrics()[-1]["loss"] - alone.metrics()[-1]["loss"])
            return Verdict(errors={"loss": gap}, fault=f"loss off by {gap:.2g}" if not gap < 1e-3 else None)

        plural = "s" if self.ranks > 1 else ""
        return Contender(name=f"{self.engine}, {self.ranks} rank{plural}", check=check, seconds=self.seconds)

    def seconds(self) -> float:
        """Of a step, the median of all but the first two."""
        return statistics.median(row["time/step"] for row in self.metrics()[2:])

    def metrics(self) -> list[dict[str, float]]:
        """A row a step."""
        if not self.found:
            self.found = self._run()
        return self.found

    def _run(self) -> list[dict[str, float]]:
        threads = max((os.cpu_count() or 1) // self.ranks, 1)
        settings = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.ranks}"]
        with tempfile.TemporaryDirectory(dir=self.place) as folder:
            done = subprocess.run(
                [sys.executable, *launcher, "-m", "rlhf", "sft", *self._arguments()],
                cwd=folder,
                env={**os.environ, **settings},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr else "rlhf sft failed")
            (log,) = Path(folder).glob("runs/*/metrics.jsonl")
            return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]

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
            f"model.intermediate={3 * size.hidden}",
            f"model.context={size.context}",
            f"batch_size={self.rows}",
            f"micro_batch_size={self.rows}",
            "epochs=1",
            "cadence.evaluate_every=0",
            "cadence.checkpoint_every=0",
        ]


def _write_rows(path: Path, size: Size, rows: int, length: int) -> None:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(10, 99, (rows, length), generator=generator).tolist()
    texts = [" ".join(str(word) for word in row) for row in words]
    lines = [json.dumps({"prompt": text[:6], "response": text[6:]}) + "\n" for text in texts]
    path.write_text("".join(lines), encoding="utf-8")
