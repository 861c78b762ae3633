"""Triton's row kernels under its interpreter against torch's in float64: the largest errors, as JSON.

A process of its own: the interpreter must be chosen before Triton is imported.
"""

import itertools
import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch

from rlhf.kernels import torch_rows, triton_rows
from rlhf.kernels.rows import Reading, Statistics, Tile, Upstream
from rlhf.kernels.workspace import Workspace

ROWS, COLUMNS, SPLIT = 5, 45, 20  # blocks of sixteen columns, tiles of 20 and 25
CPU = torch.device("cpu")


def run(kernels, dtype, *, bias, cap, entropy, level):
    """Log-probs, entropies and d products of one set of rows, in two tiles."""
    generator = torch.Generator().manual_seed(0)
    products = 5 * torch.randn(ROWS, COLUMNS, generator=generator) + level
    shift = torch.randn(COLUMNS, generator=generator).to(dtype) if bias else None
    cooling = (0.5 + torch.rand(ROWS, generator=generator)).to(dtype)
    targets = torch.tensor([0, 15, 19, 20, 44])
    g, h = torch.randn(2, ROWS, generator=generator).to(dtype)
    reading = Reading(targets=targets, cooling=cooling, scale=1.3, softcap=4.0 if cap else None)
    statistics, workspace = Statistics.start(ROWS, dtype, CPU), Workspace(CPU)
    upstream = Upstream(logprobs=g, entropies=h if entropy else None)

    def tile(columns):
        return Tile(
            products=products[:, columns].to(dtype).clone(),
            first=columns.start,
            bias=None if shift is None else shift[columns],
            reading=reading,
            statistics=statistics,
        )

    tiles = (slice(0, SPLIT), slice(SPLIT, COLUMNS))
    for columns in tiles:
        kernels.add_statistics(tile(columns), workspace, entropy=entropy)
    gradient = torch.empty(ROWS, COLUMNS, dtype=dtype)
    for columns in tiles:
        kernels.gradients(tile(columns), upstream, gradient[:, columns], workspace)
    entropies = statistics.entropies if entropy else torch.zeros(ROWS, dtype=dtype)
    return statistics.logprobs, entropies, gradient


def main():
    triton_rows.BLOCK = 16
    errors = {}
    flags = (False, True)
    for bias, cap, entropy, level in itertools.product(flags, flags, flags, (0.0, -80.0, 80.0)):
        case = {"bias": bias, "cap": cap, "entropy": entropy, "level": level}
        found, exact = (
            run(kernels, dtype, **case)
            for kernels, dtype in ((triton_rows, torch.float32), (torch_rows, torch.float64))
        )
        errors[str(case)] = [float((a - b).abs().max()) for a, b in zip(found, exact, strict=True)]
    json.dump(errors, sys.stdout)


if __name__ == "__main__":
    main()
