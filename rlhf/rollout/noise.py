"""The random numbers behind each response, keyed by the row and not by the batch it falls into."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.seeding import generator


def row_noise(group: Tensor, width: int, seed: int, stream: str) -> Tensor:
    """Uniform numbers that decide each row's tokens, whatever the batch, the rank or the number of ranks.

    Args:
        group: (B,) int64 number of the prompt drawn; the k-th row of a group is its sample k.
        width: T, tokens at most.
        seed: the run's seed.
        stream: name of the random stream.

    Returns:
        (B, T) float64 in [0, 1).
    """
    seen: dict[int, int] = {}
    rows = []
    for number in group.tolist():
        sample = seen.get(number, 0)
        seen[number] = sample + 1
        rows.append(torch.rand(width, generator=generator(seed, stream, number, sample), dtype=torch.float64))
    return torch.stack(rows)
