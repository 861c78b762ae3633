"""The order in which rows are visited: seeded permutations, the same on every rank (numerics D8).

A position in the data is one integer, the number of rows visited so far over all ranks and epochs, so
that a checkpoint that holds it continues at the next row.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """(n,) int64 permutation of the rows for one epoch; no global random state is read or moved."""
    # torch's CPU generator keeps 32 bits of its seed, so hashing is what keeps (seed, epoch) pairs apart
    digest = hashlib.sha256(f"order {seed} {epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
    return torch.randperm(n, generator=generator)


def batch_indices(position: int, size: int, n: int, seed: int) -> Tensor:
    """(size,) int64 rows at ``position … position + size − 1`` of the endless sequence of epochs.

    Args:
        position: rows visited before, over all ranks.
        size: rows wanted, over all ranks; may reach into the next epoch.
        n: rows of the data set.
        seed: of the permutations.
    """
    if n < 1:
        raise ValueError(f"batch_indices: n must be positive, got {n}")
    pieces: list[Tensor] = [torch.empty(0, dtype=torch.int64)]
    stop = position + size
    while position < stop:
        epoch, offset = divmod(position, n)
        piece = epoch_order(n, seed, epoch)[offset : offset + stop - position]
        pieces.append(piece)
        position += len(piece)
    return torch.cat(pieces)


def rank_share(index: Tensor, rank: int, world_size: int) -> Tensor:
    """Elements rank, rank + world_size, … of ``index``.

    Raises:
        ValueError: the ranks would get unequal numbers of rows.
    """
    if len(index) % world_size:
        raise ValueError(f"{len(index)} rows cannot be shared equally by {world_size} ranks")
    return index[rank::world_size]
