"""Random tokens in rows of lognormal lengths, and the same padded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FILL = 0.35
"""Mean length over the longest."""
SPREAD = 0.6
"""Standard deviation of a length's logarithm."""
FIRST = 3
"""Smaller tokens are padding, end and unknown."""


def lognormal(count: int, longest: int, generator: torch.Generator) -> Tensor:
    """(count,) lengths from 2 to ``longest``, in the mean about ``FILL`` of it; the first is the longest."""
    drawn = torch.randn(count, generator=generator, dtype=torch.float64).mul(SPREAD).exp()
    lengths = (drawn * (FILL * longest / float(drawn.mean()))).round().long().clamp(2, longest)
    lengths[0] = longest
    return lengths


def random_rows(lengths: Tensor, vocabulary: int, generator: torch.Generator) -> list[list[int]]:
    """A row of tokens for each length."""
    return [
        torch.randint(FIRST, vocabulary, (int(length),), generator=generator).tolist() for length in lengths
    ]


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(rows, longest) tokens, 0 after a row's end, and bool where they are real."""
    longest = max(len(row) for row in rows)
    tokens = torch.tensor([[*row, *([0] * (longest - len(row)))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return tokens, torch.arange(longest, device=device) < lengths.unsqueeze(1)
