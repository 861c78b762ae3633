"""Bounded scratch memory, and matrix products with float32 results in it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from rlhf.kernels import cpu_products


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums are made in: float32, or float64 for exact tests."""
    return torch.promote_types(dtype, torch.float32)


def spans(total: int, size: int) -> Iterator[slice]:
    """[0, total) in as few slices of at most ``size`` as will do, all nearly equally long."""
    count = -(-total // max(size, 1))
    for index in range(count):
        yield slice(total * index // count, total * (index + 1) // count)


class Workspace:
    """Buffers of one call, each allocated once and used for every tile.

    A fresh tile for every product would cost its page faults again and again on a CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Uninitialised, over whatever the same name held before."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = torch.empty(size, dtype=dtype, device=self._device)
            self._buffers[name] = buffer
        return buffer[:size].view(shape)

    def like(self, name: str, tile: Tensor) -> Tensor:
        """Room of the shape and dtype of ``tile``."""
        return self.take(name, tuple(tile.shape), tile.dtype)

    def product(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """a·b (m, n) in the wide dtype, in buffer ``name``.

        CUDA's library gives it; a CPU's rounds the result of a bfloat16 product to bfloat16, whose logits
        would be wrong by up to 2⁻⁹ of their size, so there the factors are widened.
        """
        out = self.take(name, (a.shape[0], b.shape[1]), wide(a.dtype))
        if a.dtype == out.dtype:
            return torch.mm(a, b, out=out)
        if a.is_cuda:
            return torch.mm(a, b, out_dtype=out.dtype, out=out)
        return self._widened_product(name, a, b)

    def _widened_product(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        left, right = (self.widened(f"{name} {side}", x) for side, x in (("left", a), ("right", b)))
        return torch.mm(left, right, out=self.take(name, (a.shape[0], b.shape[1]), left.dtype))

    def widened(self, name: str, tile: Tensor) -> Tensor:
        """``tile`` in the wide dtype: itself where it has it, else a copy in buffer ``name``."""
        if tile.dtype == wide(tile.dtype):
            return tile
        return self.take(name, tuple(tile.shape), wide(tile.dtype)).copy_(tile)

    def narrow(self, name: str, tile: Tensor, dtype: torch.dtype) -> Tensor:
        """Room for ``tile`` in ``dtype``: the tile itself where that is its own."""
        return tile if tile.dtype == dtype else self.take(name, tuple(tile.shape), dtype)

    def add_product(self, total: Tensor, a: Tensor, b: Tensor, centre: Tensor | None = None) -> None:
        """total += a·(b − centre), with ``total`` (m, n) in the wide dtype, and the centre (n,) too."""
        if cpu_products.add_product(total, a, b, centre):
            return
        if centre is not None:
            b = torch.sub(b, centre, out=self.like("centred", b))
        if a.dtype == total.dtype:
            torch.addmm(total, a, b, out=total)
        elif a.is_cuda:
            torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
        else:
            total.add_(self._widened_product("sum", a, b))
