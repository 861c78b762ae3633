"""The shapes of the head's benchmarks, by device."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.bench import Bench, Shapes, cell_name
from benchmarks.head.contenders import HeadCell
from benchmarks.head.problem import make_problem

CPU: Shapes = [(2048, 512, 32_000), (512, 896, 151_936)]
GPU: Shapes = [(8192, 4096, 131_072)]
GPU_SMALL: Shapes = [(M, H, 151_936) for M in (8192, 32_768) for H in (896, 2048)]
QUICK: Shapes = [(96, 32, 1003)]


def cells(bench: Bench, shapes: Shapes | None = None) -> Iterator[tuple[str, HeadCell]]:
    """Every shape in every dtype, peaked, with its truth."""
    on_gpu = bench.device.type == "cuda"
    if shapes is None:
        shapes = GPU if on_gpu else CPU
    for shape in bench.size(shapes, QUICK):
        for dtype in (torch.bfloat16,) if on_gpu else (torch.float32, torch.bfloat16):
            yield cell_name(shape, dtype), HeadCell(bench, make_problem(shape, dtype, device=bench.device))
