"""An average of a model's weights over the run, beside the model that is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import nn

from rlhf.distributed.collectives import is_main
from rlhf.distributed.gathering import blend

FILE = "average.pt"

M = TypeVar("M", bound=nn.Module)


class WeightAverage(Generic[M]):
    """θ̄ ← d·θ̄ + (1 − d)·θ (Polyak & Juditsky 1992; Ouyang et al. 2022, appendix C.4; numerics D46).

    Every rank holds it whole, in float32. Training never reads it.
    """

    def __init__(self, module: M, decay: float) -> None:
        """Start from a module's weights.

        Args:
            module: a plain float32 copy of the trained one, which becomes the average.
            decay: d, from 0 to 1.
        """
        self.module: M = module.eval().requires_grad_(False)
        self._decay = decay

    def update(self, source: nn.Module) -> None:
        """Take the present weights of ``source`` in, which may be sharded; every rank calls it."""
        blend(self.module, source, 1.0 - self._decay)

    def save(self, folder: Path) -> None:
        """Write what :meth:`load` reads; it is the same on every rank."""
        if is_main():
            torch.save(self.module.state_dict(), folder / FILE)

    def load(self, folder: Path) -> None:
        """Continue exactly.

        Raises:
            FileNotFoundError: the checkpoint has no average.
        """
        file = folder / FILE
        if not file.is_file():
            raise FileNotFoundError(
                f"{file}: the checkpoint holds no average of the weights (actor.ema_decay)"
            )
        self.module.load_state_dict(torch.load(file, weights_only=True))
