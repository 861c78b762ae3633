"""Safetensors files written one tensor after the other, so that no state dict need be in memory.

The format (https://huggingface.co/docs/safetensors): eight bytes with the header's length, a JSON header with
the dtype, shape and byte range of each tensor, then the bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What the format calls them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A tensor without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """That of a tensor, whole even where it is split among ranks."""
        return cls(shape=tuple(getattr(tensor, "ds_shape", tensor.shape)), dtype=tensor.dtype)

    @property
    def bytes(self) -> int:
        """Its size."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorStream:
    """Named tensors that come one at a time, in the order of ``kinds``; each is valid until the next."""

    kinds: Mapping[str, Kind]
    tensors: Callable[[], Iterator[Tensor]]

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Self:
        """Of tensors that are all there."""
        kinds = {name: Kind.of(tensor) for name, tensor in state.items()}
        return cls(kinds=kinds, tensors=lambda: iter(state.values()))

    def without(self, name: str) -> Self:
        """The others."""
        kinds = {own: kind for own, kind in self.kinds.items() if own != name}
        return type(self)(kinds=kinds, tensors=lambda: (tensor for own, tensor in self if own != name))

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors."""
        return zip(self.kinds, self.tensors(), strict=True)


class TensorFile:
    """A safetensors file that takes the tensors it was announced, in their order."""

    def __init__(self, path: Path, kinds: Mapping[str, Kind]) -> None:
        """Create the file and write its header."""
        self._path, self._left = path, list(kinds.items())[::-1]
        self._file = path.open("wb")
        self._file.write(_header(kinds))

    def add(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor.

        Raises:
            ValueError: it is not the one that was announced.
        """
        expected = self._left.pop() if self._left else ("none", None)
        if (name, Kind.of(tensor)) != expected:
            raise ValueError(
                f"{self._path}: the next tensor must be {expected[0]} ({expected[1]}), "
                f"got {name} ({Kind.of(tensor)})"
            )
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        self._file.write(data.data)

    def __enter__(self) -> Self:
        """The file."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it.

        Raises:
            ValueError: a tensor was announced and never came.
        """
        self._file.close()
        if error is None and self._left:
            raise ValueError(f"{self._path}: {self._left[-1][0]} was announced and never came")


def _header(kinds: Mapping[str, Kind]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, kind in kinds.items():
        end = offset + kind.bytes
        entries[name] = {"dtype": DTYPES[kind.dtype], "shape": kind.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    return len(text).to_bytes(8, "little") + text
