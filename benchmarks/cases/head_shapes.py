"""The shapes of the head's benchmarks, by device."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.bench import Bench, Shapes, cell_name
from benchmarks.head.contenders import HeadCell
from benchmarks.head.problem import make_problem
from benchmarks.results import bfloat16_instructions, say

CPU: Shapes = [(2048, 512, 32_000), (512, 896, 151_936)]
GPU: Shapes = [(8192, 4096, 131_072)]
GPU_SMALL: Shapes = [(M, H, 151_936) for M in (8192, 32_768) for H in (896, 2048)]
QUICK: Shapes = [(96, 32, 1003)]


def cells(bench: Bench, shapes: Shapes | None = None) -> Iterator[tuple[str, HeadCell]]:
    """Every shape in every dtype, peaked, with its truth."""
    if shapes is None:
        shapes = GPU if bench.device.type == "cuda" else CPU
    dtypes = _dtypes(bench)
    for shape in bench.size(shapes, QUICK):
        for dtype in dtypes:
            yield cell_name(shape, dtype), HeadCell(bench, make_problem(shape, dtype, device=bench.device))


def _dtypes(bench: Bench) -> list[torch.dtype]:
    """bfloat16 where the device multiplies in it: elsewhere every product, the floor's too, is emulated."""
    if bench.device.type == "cuda":
        return [torch.bfloat16]
    if bench.quick or bfloat16_instructions():
        return [torch.float32, torch.bfloat16]
    say("  bf16 left out: this CPU has no instructions for its products")
    return [torch.float32]
