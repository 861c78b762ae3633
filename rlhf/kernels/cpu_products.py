"""Sums of products in float32 on a CPU, of float32 and bfloat16 factors, in C++: see ``cpu_head.cpp``."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from rlhf.kernels.cpu_build import library

NARROW = {torch.float32: False, torch.bfloat16: True}
"""The dtypes, and whether they are the 16-bit one."""


class Product(ctypes.Structure):
    """Kept the same as in ``cpu_head.cpp``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("a", "b", "centre", "out")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "depth")),
        *((name, ctypes.c_int64) for name in ("a_stride", "b_stride", "out_stride", "threads")),
        ("a_transposed", ctypes.c_int32),
        ("narrow", ctypes.c_int32),
    )


def add_product(total: Tensor, a: Tensor, b: Tensor, centre: Tensor | None = None) -> bool:
    """total += a·(b − centre) with every sum in float32, if it can be done here; a centre is for float32."""
    if a.device.type != "cpu" or a.dtype not in NARROW or not multiplies(NARROW[a.dtype]):
        return False
    if 1 not in a.stride() or b.stride(1) != 1 or total.stride(1) != 1:
        return False
    transposed = a.stride(1) != 1
    product = Product(
        a=a.data_ptr(),
        b=b.data_ptr(),
        centre=None if centre is None else centre.data_ptr(),
        out=total.data_ptr(),
        rows=a.shape[0],
        columns=b.shape[1],
        depth=a.shape[1],
        a_stride=a.stride(1) if transposed else a.stride(0),
        b_stride=b.stride(0),
        out_stride=total.stride(0),
        threads=torch.get_num_threads(),
        a_transposed=transposed,
        narrow=NARROW[a.dtype],
    )
    compiled = library()
    assert compiled is not None
    compiled.add_product(ctypes.byref(product))
    return True


@functools.cache
def multiplies(narrow: bool) -> bool:
    """Whether this CPU and torch's build have the small products."""
    compiled = library()
    return compiled is not None and bool(compiled.head_multiplies(ctypes.c_int32(narrow)))
