"""The file format against files written here byte by byte, and values worked out by hand."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf.models.gguf import Gguf


def text(word: str) -> bytes:
    return struct.pack("<Q", len(word.encode())) + word.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def file(path: Path, pairs: list[bytes], tensors: list[tuple[str, tuple[int, ...], int, bytes]]) -> Path:
    """A GGUF file of version 3; shapes as ggml has them, inputs first; data aligned to 32 bytes."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs)
    data = b""
    for name, shape, kind, stored in tensors:
        data += b"\0" * (-len(data) % 32)
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(data))
        data += stored
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return path


def test_metadata_of_every_kind_is_read(tmp_path: Path) -> None:
    pairs = [
        pair("layers", 4, struct.pack("<I", 30)),
        pair("eps", 6, struct.pack("<f", 0.5)),
        pair("bos", 7, b"\x01"),
        pair("long", 11, struct.pack("<q", -5)),
        pair("name", 8, text("Smöl")),
        pair("words", 9, struct.pack("<IQ", 8, 2) + text("a") + text("bc")),
        pair("kinds", 9, struct.pack("<IQ3i", 5, 3, 1, 3, -1)),
    ]
    found = Gguf.open(file(tmp_path / "m.gguf", pairs, [])).metadata
    assert found == {
        "layers": 30,
        "eps": 0.5,
        "bos": True,
        "long": -5,
        "name": "Smöl",
        "words": ["a", "bc"],
        "kinds": [1, 3, -1],
    }


def test_a_plain_matrix_has_outputs_first(tmp_path: Path) -> None:
    stored = np.arange(6, dtype="<f4").tobytes()
    opened = Gguf.open(file(tmp_path / "m.gguf", [], [("pad", (1,), 0, b"\0" * 4), ("w", (3, 2), 0, stored)]))
    assert opened.tensor("w").tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]  # 2 outputs of 3 inputs


def test_four_bits_are_steps_above_the_least_weight(tmp_path: Path) -> None:
    nibbles = bytes(low + 16 * (15 - low) for low in range(16))  # low halves count up, high ones down
    block = np.float16(0.5).tobytes() + np.float16(-3).tobytes() + nibbles
    weights = Gguf.open(file(tmp_path / "m.gguf", [], [("w", (32, 1), 3, block)])).tensor("w")[0]
    assert weights[:16].tolist() == [-3.0 + 0.5 * step for step in range(16)]
    assert weights[16:].tolist() == [4.5 - 0.5 * step for step in range(16)]


def test_eight_bits_are_signed_steps(tmp_path: Path) -> None:
    steps = np.arange(-16, 16, dtype=np.int8)
    blocks = np.float16(0.25).tobytes() + steps.tobytes() + np.float16(2).tobytes() + steps.tobytes()
    weights = Gguf.open(file(tmp_path / "m.gguf", [], [("w", (64, 1), 8, blocks)])).tensor("w")[0]
    assert weights.tolist() == [0.25 * n for n in range(-16, 16)] + [2.0 * n for n in range(-16, 16)]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"GGML" + bytes(40), "is no GGUF file of version 2 or 3"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "is no GGUF file of version 2 or 3"),
        (b"GGUF" + struct.pack("<IQQ", 3, 5, 0), "is damaged: "),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair("x", 77, b""), "is damaged: 77"),
    ],
)
def test_another_or_a_torn_file_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught:
        Gguf.open(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_quantisation_and_an_absent_tensor_are_named(tmp_path: Path) -> None:
    opened = Gguf.open(file(tmp_path / "m.gguf", [], [("w", (32, 1), 12, bytes(64))]))
    with pytest.raises(ValueError, match=r"tensor w is of kind 12, known are \[0, 3, 8\]"):
        opened.tensor("w")
    with pytest.raises(ValueError, match="has no tensor v"):
        opened.tensor("v")


@pytest.mark.network
def test_dequantised_weights_are_those_of_the_reference(smollm2_packages: Any) -> None:
    """Every tensor of the real file, bit for bit, against the package ``gguf`` of llama.cpp."""
    import gguf

    from rlhf.models.smollm2 import packaged_file

    opened, other = Gguf.open(packaged_file()), gguf.GGUFReader(packaged_file())
    assert set(opened.places) == {tensor.name for tensor in other.tensors}
    for tensor in other.tensors:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1].tolist())
        np.testing.assert_array_equal(opened.tensor(tensor.name), expected)
