"""Cutting rows into forward passes. Every rank makes the same number of them: ZeRO-3 gathers in each."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def exact_div(numerator: int, denominator: int, what: str, by: str) -> int:
    """``numerator / denominator``, refused when it leaves a remainder.

    Raises:
        ValueError: names both sizes.
    """
    if denominator < 1 or numerator % denominator or numerator < 1:
        raise ValueError(f"{what}={numerator} cannot be shared out equally over {by}={denominator}")
    return numerator // denominator


def by_length(lengths: Tensor, size: int) -> tuple[Tensor, ...]:
    """Row indices in groups of ``size``, rows of like length together so that little is padding.

    Args:
        lengths: (B,) int64.
        size: rows of a micro-batch on this rank; the last may be smaller.
    """
    return lengths.argsort(stable=True).cpu().split(size)


def held_out(rows: int, size: int, rank: int, world_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's rows of a whole data set, in equally many groups on every rank.

    Yields:
        index (b,): rows; the last group repeats row 0 where a rank has run out.
        real (b,): bool, False on such a repetition.
    """
    share = torch.arange(rows)[rank::world_size]  # empty where there are fewer rows than ranks
    longest = -(-rows // world_size)
    filled = torch.cat([share, torch.zeros(longest - len(share), dtype=torch.int64)])
    real = torch.arange(longest) < len(share)
    yield from zip(filled.split(size), real.split(size), strict=True)
