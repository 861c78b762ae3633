"""One seed, many named random streams; nothing touches the global one."""

from __future__ import annotations

import hashlib
import json

import torch


def generator(seed: int, *names: str | int) -> torch.Generator:
    """An own random stream (on the CPU) for each name, e.g. ``generator(seed, "sampling", rank)``.

    The stream depends on seed and names only, by way of sha256. torch's CPU generator keeps 32 bits of its
    seed, so two of n streams coincide with probability n²/2³³.
    """
    digest = hashlib.sha256(json.dumps([seed, *names]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
