"""GGUF, the file format of llama.cpp: metadata and tensors, quantised ones made float32.

Layout (github.com/ggml-org/ggml, docs/gguf.md): a header, key-value pairs, what tensors there are, then their
data, aligned. All numbers are little-endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Kinds of metadata and their `struct` formats; beside them 8 is text and 9 an array."""
TEXT, ARRAY = 8, 9
BLOCK = 32
"""Weights that share a scale."""
Q4_1 = np.dtype([("scale", "<f2"), ("least", "<f2"), ("nibbles", "u1", BLOCK // 2)])
Q8_0 = np.dtype([("scale", "<f2"), ("steps", "i1", BLOCK)])
STORED = {0: np.dtype("<f4"), 3: Q4_1, 8: Q8_0}
"""Kinds of tensors that are known: float32, and two quantisations."""

Array = npt.NDArray[np.float32]


class Place(NamedTuple):
    """Where a tensor lies."""

    shape: tuple[int, ...]
    """As in torch: of a matrix outputs, then inputs."""
    kind: int
    offset: int
    """Bytes, from the beginning of the data."""


@dataclass(kw_only=True, slots=True)
class Gguf:
    """An opened file."""

    path: Path
    metadata: dict[str, Any]
    places: dict[str, Place]
    buffer: mmap.mmap
    start: int
    """Byte at which the data begin."""

    @classmethod
    def open(cls, path: Path) -> Gguf:
        """Read everything but the tensors.

        Raises:
            ValueError: it is no GGUF file of version 2 or 3, or ends too early.
        """
        with path.open("rb") as file:
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        read = _Reader(buffer)
        try:
            magic, version, tensors, pairs = read.numbers("4sIQQ")
            if magic != b"GGUF" or version not in (2, 3):
                raise ValueError(f"{path} is no GGUF file of version 2 or 3")
            metadata = {read.text(): read.value(*read.numbers("I")) for _ in range(pairs)}
            places = dict(read.place() for _ in range(tensors))
        except (struct.error, UnicodeDecodeError, KeyError) as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        alignment = metadata.get("general.alignment", BLOCK)
        start = math.ceil(read.position / alignment) * alignment
        return cls(path=path, metadata=metadata, places=places, buffer=buffer, start=start)

    def tensor(self, name: str) -> Array:
        """A tensor in float32.

        Raises:
            ValueError: there is none of the name, or it is quantised in a way that is not known.
        """
        if name not in self.places:
            raise ValueError(f"{self.path} has no tensor {name}")
        shape, kind, offset = self.places[name]
        if kind not in STORED:
            raise ValueError(f"{self.path}: tensor {name} is of kind {kind}, known are {sorted(STORED)}")
        stored = STORED[kind]
        count = math.prod(shape) // (1 if stored.fields is None else BLOCK)
        blocks = np.frombuffer(self.buffer, stored, count, self.start + offset)
        return (blocks if stored.fields is None else dequantised(blocks)).reshape(shape)


def dequantised(blocks: npt.NDArray[Any]) -> Array:
    """(blocks,) of `Q4_1` or `Q8_0` → (blocks, 32): scale·step, in Q4_1 added to the block's least weight."""
    scale = blocks["scale"].astype(np.float32)[:, None]
    if blocks.dtype == Q8_0:
        return scale * blocks["steps"].astype(np.float32)
    low, high = blocks["nibbles"] & 15, blocks["nibbles"] >> 4  # weights 0 … 15, and 16 … 31
    steps = np.concatenate([low, high], axis=1).astype(np.float32)
    return scale * steps + blocks["least"].astype(np.float32)[:, None]


class _Reader:
    """Values one after the other."""

    def __init__(self, buffer: mmap.mmap) -> None:
        self._buffer, self.position = buffer, 0

    def numbers(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{form}", self._buffer, self.position)
        self.position += struct.calcsize(f"<{form}")
        return found

    def text(self) -> str:
        (length,) = self.numbers("Q")
        return str(self.numbers(f"{length}s")[0], "utf-8")

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            return self.numbers(NUMBERS[kind])[0]
        kind, length = self.numbers("IQ")
        if kind in NUMBERS:
            return list(self.numbers(f"{length}{NUMBERS[kind]}"))
        return [self.value(kind) for _ in range(length)]

    def place(self) -> tuple[str, Place]:
        name, (dimensions,) = self.text(), self.numbers("I")
        shape = self.numbers(f"{dimensions}Q")
        return name, Place(tuple(reversed(shape)), *self.numbers("IQ"))
