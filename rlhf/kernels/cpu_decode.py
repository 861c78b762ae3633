"""One token a row on a CPU, in C++, where :mod:`rlhf.kernels.cpu_build` gets it compiled."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from rlhf.kernels.cpu_build import decode_library
from rlhf.kernels.cpu_products import NARROW


class Attention(ctypes.Structure):
    """Kept the same as in ``cpu_decode.cpp``, which says what each is."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "keys", "values", "lengths", "out")),
        *((name, ctypes.c_int64) for name in ("rows", "heads", "key_heads", "dim", "columns")),
        *(
            (f"{name}_{part}", ctypes.c_int64)
            for name in ("query", "key", "value")
            for part in ("row", "head")
        ),
        ("window", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("narrow", ctypes.c_int32),
    )


class Draw(ctypes.Structure):
    """Kept the same as in ``cpu_decode.cpp``, which says what each is."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in ("logits", "floors", "noise", "tokens", "logprobs", "entropies")
        ),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "stride", "threads")),
        ("temperature", ctypes.c_float),
    )


def has_attention(query: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether :func:`decode_attention` is there for these."""
    one_kind = query.dtype == keys.dtype == values.dtype and keys.shape == values.shape
    return query.device.type == "cpu" and query.dtype in NARROW and one_kind and decode_library() is not None


def has_draw(logits: Tensor) -> bool:
    """Whether :func:`draw_tokens` is there for these."""
    return logits.device.type == "cpu" and logits.dtype == torch.float32 and decode_library() is not None


def decode_attention(  # noqa: PLR0917  of one layer: the new token's states, the cache, how far it reaches
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    *,
    scale: float,
    window: int | None,
) -> Tensor:
    """Store the new token's key and value, and attend from it to itself and all before it.

    Args:
        query: (B, heads, D).
        key: (B, key heads, D).
        value: (B, key heads, D).
        keys: (B, key heads, C, D) contiguous; row i's tokens stand in columns 0 … lengths[i] − 1.
        values: as ``keys``.
        lengths: (B,) int64, below C.
        scale: factor of the products.
        window: tokens that one attends to, itself included; None for all.

    Returns:
        (B, heads, D).
    """
    query, key, value = (part if part.stride(2) == 1 else part.contiguous() for part in (query, key, value))
    out = query.new_empty(query.shape)
    compiled = decode_library()
    assert compiled is not None
    given = Attention(
        **{
            name: part.data_ptr()
            for name, part in (
                *(("query", query), ("key", key), ("value", value), ("keys", keys), ("values", values)),
                *(("lengths", lengths), ("out", out)),
            )
        },
        **{
            f"{name}_{part}": states.stride(axis)
            for name, states in (("query", query), ("key", key), ("value", value))
            for axis, part in enumerate(("row", "head"))
        },
        rows=query.shape[0],
        heads=query.shape[1],
        key_heads=keys.shape[1],
        dim=keys.shape[3],
        columns=keys.shape[2],
        window=keys.shape[2] if window is None else window,
        threads=torch.get_num_threads(),
        scale=scale,
        narrow=NARROW[query.dtype],
    )
    compiled.decode_attention(ctypes.byref(given))
    return out


def draw_tokens(
    logits: Tensor, noise: Tensor, temperature: float, floors: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`rlhf.kernels.drawing.drawn`."""
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    noise, floors = noise.contiguous(), None if floors is None else floors.contiguous()
    tokens, logprobs = noise.new_empty(len(logits), dtype=torch.int64), logits.new_empty(len(logits))
    entropies = torch.empty_like(logprobs)
    compiled = decode_library()
    assert compiled is not None
    given = Draw(
        logits=logits.data_ptr(),
        floors=None if floors is None else floors.data_ptr(),
        noise=noise.data_ptr(),
        tokens=tokens.data_ptr(),
        logprobs=logprobs.data_ptr(),
        entropies=entropies.data_ptr(),
        rows=len(logits),
        columns=logits.shape[1],
        stride=logits.stride(0),
        threads=torch.get_num_threads(),
        temperature=temperature,
    )
    compiled.draw_tokens(ctypes.byref(given))
    return tokens, logprobs, entropies
