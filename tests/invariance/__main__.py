"""The invariance matrix: python -m tests.invariance

Each cell is the largest relative difference ‖g − g_ref‖ / ‖g_ref‖, over all parameter tensors and over the
gradient norms that the engines report, between the gradient of one optimiser step laid out as the line says
and that of the reference: plain torch, one process, one micro-batch. Both are steps of the production
trainers on the same twelve rows (`runs.py`).

Tolerance. A layout changes nothing but the order in which numbers are added, so what is left is rounding. A
gradient here is a sum of some thousand products; each addition rounds to 2⁻²⁴ (float32) or 2⁻⁵³ (float64) of
its result, and terms of both signs cancel to a tenth or so of their sizes. That makes some 1e-6 and 1e-15;
allowed are 1e-5 and 1e-12. The line "float32 for float64" says how much of it is there before anything is
laid out differently. Where the model is float64, the weights of tokens, advantages and old log-probs are
still the product's float32, the same numbers on both sides.

The last lines are wrong on purpose and must exceed the float32 tolerance a thousandfold. The exit status is
1 when a cell is beyond its tolerance or a mistake is not.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from rlhf.distributed import collectives, runtime
from tests import two_ranks as launcher
from tests.invariance import runs

HERE = Path(__file__).parent
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
SEEN = 1e-2
"""A mistake differs by at least this much."""


COLUMNS = [(model, stage) for model in runs.MODELS for stage in runs.STAGES]


@dataclass(kw_only=True)
class Line:
    """One way to lay a step out, for every stage and model that knows it."""

    label: str
    ranks: int = 1
    stages: tuple[str, ...] = runs.STAGES
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, model: str, stage: str) -> Any:
        """What is run in this cell; None where there is nothing to run."""
        return runs.Run(model=model, stage=stage, **self.options) if stage in self.stages else None

    @property
    def runs(self) -> list[Any]:
        return [run for column in COLUMNS if (run := self.run(*column)) is not None]

    @property
    def dtype(self) -> str:
        return "float64" if self.options.get("engine") == "float64" else "float32"

    def holds(self, difference: float) -> bool:
        if self.options.get("fault"):
            return SEEN < difference < float("inf")
        return difference <= TOLERANCE[self.dtype]


ZERO = [f"zero{stage}" for stage in range(4)]
DATA = {
    "usual": "2 ranks",
    "uneven": "rank 1 has few tokens",
    "masked": "rank 1 has no token",
    "short": "responses of 1 token",
}


def line(label: str, ranks: int = 1, stages: tuple[str, ...] = runs.STAGES, **options: Any) -> Line:
    return Line(label=label, ranks=ranks, stages=stages, options=options)


def one_process(engine: str) -> list[Line]:
    """What can be varied without a second rank."""
    found = [line(f"micro-batches of {micro}", engine=engine, micro=micro) for micro in (1, 5, 8)]
    changes = {
        "padding": f"{runs.EXTRA} more columns of padding",
        "left": "padding on the left",
        "order": "rows in another order",
        "recompute": "gradient checkpointing",
    }
    for change, label in changes.items():
        stages = ("sft", "reward") if change == "left" else runs.STAGES  # prompts are padded on the left only
        found.append(line(label, stages=stages, engine=engine, micro=5, change=change))
    found += [
        line("packed", engine=engine, micro=5, change="packed"),
        line("packed, 50 tokens", engine=engine, tokens=50, change="packed"),
        line("packed, checkpointing", engine=engine, micro=5, change="packed, recompute"),
        line("padded, 50 tokens", engine=engine, tokens=50),
    ]
    return found


def two_ranks(engine: str, data: Iterable[str] = DATA) -> list[Line]:
    return [line(f"{DATA[name]}, {engine}", 2, engine=engine, micro=4, data=name) for name in data]


def sections() -> dict[str, list[Line]]:
    """The lines of the matrix."""
    return {
        "float64, 1 process": one_process("float64"),
        "float64, 2 ranks": two_ranks("float64"),
        "float32, 1 process": [
            line("float32 for float64"),
            *one_process("plain"),
            *(line(engine, engine=engine, micro=4) for engine in ZERO),
        ],
        "float32, 2 ranks": [
            *(each for engine in ("plain", *ZERO) for each in two_ranks(engine)),
            line("2 ranks, zero3, checkpointing", 2, engine="zero3", micro=4, change="recompute"),
            *packed_on_two_ranks(),
        ],
        "wrong on purpose": mistakes(),
    }


def packed_on_two_ranks() -> list[Line]:
    """Rank 1 has short rows, so that by itself it would need fewer micro-batches."""
    shared: dict[str, Any] = {"tokens": 40, "data": "uneven"}
    return [
        line("2 ranks, plain, packed", 2, engine="plain", change="packed", **shared),
        line("2 ranks, zero3, packed", 2, engine="zero3", change="packed", **shared),
        line(
            "2 ranks, zero3, packed, checkpointing", 2, engine="zero3", change="packed, recompute", **shared
        ),
        line("2 ranks, zero3, padded, 40 tokens", 2, engine="zero3", **shared),
    ]


def mistakes() -> list[Line]:
    online = ("ppo", "grpo")
    return [
        line(runs.FAULTS["micro"], engine="plain", micro=5, fault="micro"),
        line(runs.FAULTS["rank"], 2, ("sft", *online), engine="plain", micro=4, data="uneven", fault="rank"),
        line(runs.FAULTS["average"], 2, engine="zero2", micro=4, fault="average"),
        line(runs.FAULTS["whiten"], 2, ("ppo",), engine="plain", micro=4, data="uneven", fault="whiten"),
    ]


def gradients(wanted: Iterable[Any], label: str) -> dict[str, dict[str, Tensor]]:
    """The gradient of each run, by its name, on this process's number of ranks."""
    shown = tqdm(list(wanted), desc=label, unit=" steps", disable=not collectives.is_main())
    return {repr(run): runs.gradient(run) for run in shown}


def work(_folder: Path) -> dict[str, Any]:
    """What each of two ranks does."""
    lines = [line for section in sections().values() for line in section if line.ranks == 2]
    return gradients([run for line in lines for run in line.runs], "2 ranks")


def measured() -> dict[str, list[tuple[Line, list[float | None]]]]:
    """Every section's lines with their differences, None where there is nothing to run."""
    parts = sections()
    lines = [line for section in parts.values() for line in section]
    with tempfile.TemporaryDirectory() as folder:
        if launcher.launch(__file__, "work", folder) != 0:
            raise RuntimeError("the two ranks failed")
        both = torch.load(Path(folder) / "rank0.pt", weights_only=False)
    runtime.start()
    references = {repr(run.reference): run.reference for line in lines for run in line.runs}
    single = {repr(run): run for line in lines if line.ranks == 1 for run in line.runs}
    exact = [runs.Run(model=model, stage=stage, engine="float64") for model, stage in COLUMNS]
    alone = gradients((references | single | {repr(run): run for run in exact}).values(), "1 process")
    runtime.stop()

    def cell(line: Line, run: Any) -> float | None:
        if run is None:
            return None
        reference = run.reference
        if line.label == "float32 for float64":
            reference = runs.Run(model=run.model, stage=run.stage, engine="float64")
        return runs.difference((both if line.ranks == 2 else alone)[repr(run)], alone[repr(reference)])

    return {
        title: [(line, [cell(line, line.run(*column)) for column in COLUMNS]) for line in section]
        for title, section in parts.items()
    }


def table(found: dict[str, list[tuple[Line, list[float | None]]]]) -> str:
    """The matrix as text; a cell beyond its tolerance carries an exclamation mark."""
    width = 2 + max(len(line.label) for section in found.values() for line, _ in section)
    heads = "".join(f"{stage:>10}" for _, stage in COLUMNS)
    models = "".join(f"{model:<40}" for model in runs.MODELS)
    rows = ["".ljust(width + 4) + models, "".ljust(width) + heads]
    for title, section in found.items():
        bound = f"more than {SEEN:g}" if title == "wrong on purpose" else f"at most {TOLERANCE[title[:7]]:g}"
        rows += ["", f"{title}: {bound}"]
        for line, cells in section:
            texts = [
                "–" if cell is None else f"{cell:.1e}{' ' if line.holds(cell) else '!'}" for cell in cells
            ]
            rows.append(line.label.ljust(width) + "".join(f"{text:>10}" for text in texts))
    return "\n".join(row.rstrip() for row in rows) + "\n"


def main() -> int:
    about = argparse.ArgumentParser(
        prog="python -m tests.invariance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    about.parse_args()
    torch.set_num_threads(1)
    found = measured()
    sys.stdout.write(table(found))
    cells = [(line, cell) for section in found.values() for line, cells in section for cell in cells]
    wrong = [line.label for line, cell in cells if cell is not None and not line.holds(cell)]
    sys.stdout.write(f"{len(wrong)} of {sum(cell is not None for _, cell in cells)} cells out of bounds\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
