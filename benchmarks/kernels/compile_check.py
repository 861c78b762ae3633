"""Compiles every Triton kernel for an H100 that need not be there, and prints what it takes of the chip.

    python benchmarks/kernels/compile_check.py [--capability 90]

One line a variant: registers, bytes of stack (spills), bytes of shared memory. Ends with 1 where a kernel
spills or could not be launched.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rlhf.kernels import triton_rows

SHARED_LIMIT = 232_448  # bytes that one block of an H100 can have
POINTERS = {
    "bias": "*fp32",
    "cooling": "*fp32",
    "targets": "*i64",
    "peak": "*fp32",
    "total": "*fp32",
    "weighted": "*fp32",
    "target": "*fp32",
    "upstream": "*fp32",
    "upstream_entropy": "*fp32",
}
NUMBERS = {
    "stride": "i32",
    "out_stride": "i32",
    "columns": "i32",
    "first": "i32",
    "scale": "fp32",
    "cap": "fp32",
}


@dataclass(kw_only=True, slots=True)
class Usage:
    """What one variant takes."""

    name: str
    registers: int
    stack: int
    shared: int

    @property
    def fits(self) -> bool:
        """No spills, and room for a block."""
        return self.stack == 0 and self.shared <= SHARED_LIMIT


def variants() -> Iterator[tuple[Any, str, dict[str, str], dict[str, Any]]]:
    """Kernel, name, signature and constants, as ``rlhf.kernels.triton_rows`` launches them."""
    flags = (False, True)
    for tile, bias, cap, entropy in itertools.product(("fp32", "bf16"), flags, flags, flags):
        constants = {"HAS_BIAS": bias, "HAS_CAP": cap, "BLOCK": triton_rows.BLOCK}
        name = f"{tile} bias={bias:d} cap={cap:d} entropy={entropy:d}"
        yield (
            triton_rows.statistics_kernel,
            f"statistics {name}",
            {"products": f"*{tile}"},
            {**constants, "ENTROPY": entropy},
        )
        for out in ("fp32", "bf16"):
            yield (
                triton_rows.gradients_kernel,
                f"gradients {name} out={out}",
                {"products": f"*{tile}", "out": f"*{out}"},
                {**constants, "HAS_LOGPROB": True, "HAS_ENTROPY": entropy},
            )


def usage(
    kernel: Any, name: str, tensors: dict[str, str], constants: dict[str, Any], capability: int
) -> Usage:
    """One variant compiled, its pointers aligned as torch aligns them."""
    kinds = {**POINTERS, **NUMBERS, **tensors, **dict.fromkeys(constants, "constexpr")}
    signature = {argument: kinds[argument] for argument in kernel.arg_names}
    aligned = [i for i, argument in enumerate(signature) if argument in {*POINTERS, *tensors}]
    attributes = {(index,): [["tt.divisibility", 16]] for index in aligned}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": triton_rows.WARPS})
    registers, stack = resources(compiled.asm["cubin"])
    return Usage(name=name, registers=registers, stack=stack, shared=compiled.metadata.shared)


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers a thread and bytes of stack, by the tool that comes with Triton."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2])


def main() -> int:
    """Print one line a variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capability", type=int, default=90)
    capability = parser.parse_args().capability
    fits = True
    for variant in variants():
        found = usage(*variant, capability)
        fits = fits and found.fits
        print(
            f"{found.name:60s} registers {found.registers:3d}  stack {found.stack:4d} B  "
            f"shared {found.shared:6d} B{'' if found.fits else '  DOES NOT FIT'}"
        )
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
