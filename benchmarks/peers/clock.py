"""Seconds of each step of a transformers trainer, and of TRL's, which are made of it."""

from __future__ import annotations

import time
from typing import Any


def step_clock() -> Any:
    """A callback whose ``seconds`` has a number for each optimiser step.

    ``peak`` is what the last one held at most over what was held before it; on a GPU only, for on a CPU
    the measuring itself takes time.
    """
    import torch
    from transformers import TrainerCallback

    from benchmarks.measure import held, most_since

    gpu = torch.device("cuda") if torch.cuda.is_available() else None

    class Clock(TrainerCallback):  # type: ignore[misc, unused-ignore]
        """From one step's beginning to its end."""

        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.peak: int | None = None
            self._start = 0.0
            self._held: int | None = None

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            """Starts."""
            self._held = held(gpu) if gpu is not None else None
            self._start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            """Stops."""
            if gpu is not None and self._held is not None:
                self.peak = most_since(self._held, gpu)
            self.seconds.append(time.perf_counter() - self._start)

    return Clock()


def end_clock() -> Any:
    """For a trainer that says when a step ends and not when it begins: from one end to the next."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc, unused-ignore]
        """``seconds`` leaves the first step out."""

        def __init__(self) -> None:
            self.seconds: list[float] = []
            self._last: float | None = None

        def on_step_end(self, *_: Any, **__: Any) -> None:
            """Notes the time since the last end."""
            now = time.perf_counter()
            if self._last is not None:
                self.seconds.append(now - self._last)
            self._last = now

    return Clock()
