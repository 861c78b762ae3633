"""A decoder's step of one token a row on a CPU, in C++, where :mod:`rlhf.kernels.cpu_build` gets it compiled.

`Layer` and what it is made of point at weights where they are: nothing is copied, and what points at them
must not outlive them.
"""

from __future__ import annotations

import ctypes
import math
from enum import IntEnum

import torch
from torch import Tensor

from rlhf.kernels.cpu_build import step_library

FEW = 256
"""Rows that are few: beyond, torch's product is as fast."""


class Activation(IntEnum):
    """Between the two halves of a feed-forward layer."""

    silu = 0
    gelu_tanh = 1


class Linear(ctypes.Structure):
    """Kept the same as in ``cpu_step.cpp``."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("outputs", "inputs", "output_stride", "input_stride")),
    )

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Linear:
        """W·x + b, W (outputs, inputs) float32 in any layout."""
        return cls(
            weight=weight.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
            outputs=weight.shape[0],
            inputs=weight.shape[1],
            output_stride=weight.stride(0),
            input_stride=weight.stride(1),
        )


class Norm(ctypes.Structure):
    """Kept the same as in ``cpu_step.cpp``; without a weight there is none."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("eps", ctypes.c_float),
        ("centred", ctypes.c_int32),
    )


class Layer(ctypes.Structure):
    """Kept the same as in ``cpu_step.cpp``."""

    _fields_ = (
        *((f"{name}_norm", Norm) for name in ("attention", "feed", "query", "key")),
        *((name, Linear) for name in ("query", "key", "value", "output", "gate", "up", "down")),
        *((name, ctypes.c_void_p) for name in ("shared_keys", "shared_values", "keys", "values")),
        ("window", ctypes.c_int64),
        ("scale", ctypes.c_float),
    )


class Step(ctypes.Structure):
    """Kept the same as in ``cpu_step.cpp``."""

    _fields_ = (
        ("layers", ctypes.POINTER(Layer)),
        *((name, ctypes.c_void_p) for name in ("embeddings", "places", "cosines", "sines")),
        *(
            (name, ctypes.c_void_p)
            for name in ("tokens", "lengths", "prompts", "begun", "slots", "room", "out")
        ),
        *((name, ctypes.c_int64) for name in ("depth", "rows", "width", "heads", "key_heads", "dim")),
        *((name, ctypes.c_int64) for name in ("columns", "shared_columns", "inner", "threads")),
        ("last", Norm),
        ("activation", ctypes.c_int32),
    )


class FewRows(ctypes.Structure):
    """Kept the same as in ``cpu_step.cpp``."""

    _fields_ = (
        ("linear", Linear),
        *((name, ctypes.c_void_p) for name in ("in", "room", "out")),
        *((name, ctypes.c_int64) for name in ("rows", "in_stride", "threads")),
    )


def has_step() -> bool:
    """Whether :func:`advance` is there."""
    return step_library() is not None


def advance(step: Step, tokens: Tensor) -> Tensor:
    """Run one token a row through the decoder; its keys and values are added to the layers' caches.

    Args:
        step: the decoder, its caches, and where the rows stand in them; what depends on the number of rows is
            filled in here.
        tokens: (B,) int64.

    Returns:
        (B, width) float32 states after the last norm.
    """
    compiled = step_library()
    assert compiled is not None
    tokens = tokens.contiguous()
    out = torch.empty(len(tokens), step.width)
    step.tokens, step.out = tokens.data_ptr(), out.data_ptr()
    step.rows, step.threads = len(tokens), torch.get_num_threads()
    room = torch.zeros(compiled.step_room(ctypes.byref(step)))
    step.room = room.data_ptr()
    compiled.advance(ctypes.byref(step))
    return out


def row_elements(step: Step) -> int:
    """Numbers that a step holds of each of many rows."""
    compiled = step_library()
    assert compiled is not None
    step.rows, step.threads = 1024, torch.get_num_threads()
    return int(compiled.step_room(ctypes.byref(step))) // 1024


def has_few_rows(states: Tensor, weight: Tensor) -> bool:
    """Whether :func:`few_rows` is there for these, and faster than torch's product."""
    few = math.prod(states.shape[:-1]) <= FEW and states.shape[-1] > 0
    on_cpu = states.device.type == "cpu" and states.dtype == weight.dtype == torch.float32
    return on_cpu and few and has_step()


def few_rows(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, H), (V, H), (V,) → (B, V) W·h + b in float32, a row's numbers the same in every batch."""
    compiled = step_library()
    assert compiled is not None
    states = states if states.stride(1) == 1 else states.contiguous()
    out = states.new_empty(len(states), len(weight))
    few = FewRows(linear=Linear.of(weight, bias), out=out.data_ptr(), rows=len(states))
    few.in_stride, few.threads = states.stride(0), torch.get_num_threads()
    setattr(few, "in", states.data_ptr())
    room = states.new_empty(compiled.few_rows_room(ctypes.byref(few)))
    few.room = room.data_ptr()
    compiled.multiply_few_rows(ctypes.byref(few))
    return out
