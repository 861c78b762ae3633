"""``rlhf COMMAND …`` with every collective of torch.distributed timed and its bytes counted.

    torchrun --nproc_per_node=2 -m benchmarks.ranks.communication sft name=…

Rank 0 writes communication.json into the working folder after each step: seconds of the step, seconds that
it stood in collectives or waited for them, bytes that it handed to them, and the most memory that it has held
beyond what the libraries take. DeepSpeed's collectives are torch's underneath.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from rlhf.metrics import peak_bytes

FILE = "communication.json"
COLLECTIVES = (
    "all_reduce",
    "reduce",
    "broadcast",
    "all_gather",
    "all_gather_into_tensor",
    "_all_gather_base",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "_reduce_scatter_base",
    "all_to_all_single",
    "barrier",
)


@dataclass(kw_only=True, slots=True)
class Meter:
    """Adds up since the start."""

    seconds: float = 0.0
    """Inside collectives, or waiting for those that run beside the computation."""
    bytes: int = 0
    """Of each collective's largest tensor, or list of tensors."""
    steps: list[dict[str, float]] = field(default_factory=list)
    libraries: int = 0
    """Bytes held before there is a model."""
    _depth: int = 0

    def install(self) -> None:
        """In place of torch's own functions, wherever DeepSpeed looks them up."""
        for name in COLLECTIVES:
            timed = self.timed(getattr(distributed_c10d, name))
            setattr(distributed_c10d, name, timed)
            if hasattr(dist, name):
                setattr(dist, name, timed)

    def timed(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        """The same collective; one that it calls itself is not counted again."""

        def run(*args: Any, **kwargs: Any) -> Any:
            if self._depth:
                return collective(*args, **kwargs)
            self.bytes += max([0, *map(_size, [*args, *kwargs.values()])])
            self._depth += 1
            start = time.perf_counter()
            try:
                work = collective(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start
                self._depth -= 1
            return work if work is None else Waited(work, self)

        return run

    def step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The same step, its numbers added to ``steps``."""

        def run(*args: Any, **kwargs: Any) -> Any:
            start, seconds, handed = time.perf_counter(), self.seconds, self.bytes
            result = step(*args, **kwargs)
            spent = {"step": time.perf_counter() - start, "collectives": self.seconds - seconds}
            self.steps.append({**spent, "bytes": float(self.bytes - handed)})
            self.steps[-1]["memory"] = float(peak_bytes() - self.libraries)
            if dist.get_rank() == 0:
                Path(FILE).write_text(json.dumps(self.steps), encoding="utf-8")
            return result

        return run


class Waited:
    """A collective that runs beside the computation; waiting for it is timed."""

    def __init__(self, work: Any, meter: Meter) -> None:
        self._work, self._meter = work, meter

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        """Until it has ended."""
        start = time.perf_counter()
        try:
            return self._work.wait(*args, **kwargs)
        finally:
            self._meter.seconds += time.perf_counter() - start

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def _size(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
        return sum(tensor.nbytes for tensor in value)
    return 0


def main() -> None:
    """Wrap, then run the command."""
    meter = Meter()
    meter.install()
    import deepspeed  # noqa: F401

    from rlhf.cli import main as command
    from rlhf.trainers.supervised import SupervisedTrainer

    meter.libraries = peak_bytes()
    SupervisedTrainer.step = meter.step(SupervisedTrainer.step)  # type: ignore[method-assign]
    command.main()


if __name__ == "__main__":
    main()
