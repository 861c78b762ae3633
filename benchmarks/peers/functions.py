"""The peers' functions of plain tensors: a dictionary in, a dictionary out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass(kw_only=True, slots=True)
class PeerFunction:
    """How a peer's function is made."""

    make: Callable[[], Callable[[Tensors], Tensors]]


FUNCTIONS: dict[str, PeerFunction] = {}
