"""Bytes of tensors, counted as torch's operations make them and let them go."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Held(TorchDispatchMode):
    """Bytes that torch's operations make inside the block and something still holds.

    Resident memory is what the system's allocator keeps, which is a tenth more after many sizes have come and
    gone. What an operation holds inside itself alone is not seen. A tensor on the meta device counts as if it
    had numbers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}  # bytes of storages, 0 for those that were there before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run it, and count what is new of its results."""
        for storage in _storages((args, kwargs)):
            self._see(storage, self.found(storage))
        results = func(*args, **(kwargs or {}))
        for storage in _storages(results):
            self._see(storage, storage.nbytes())
        return results

    def found(self, storage: torch.UntypedStorage) -> int:
        """Bytes that a tensor counts for which no operation inside the block has made."""
        return 0

    def begin(self) -> None:
        """Let :attr:`peak` start from what is held now."""
        self.peak = self.now

    def _see(self, storage: torch.UntypedStorage, size: int) -> None:
        """Count a storage that was not seen yet; forget it when it goes: addresses come again."""
        if storage._cdata not in self._known:
            self._known[storage._cdata] = size
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, storage._cdata)

    def _gone(self, storage: int) -> None:
        self.now -= self._known.pop(storage, 0)


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
