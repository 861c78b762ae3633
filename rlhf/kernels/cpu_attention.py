"""Attention of rows that stand end to end, in C++, where :mod:`rlhf.kernels.cpu_build` gets it compiled.

torch's attention takes one row a call, and a row that begins like another one has to be put together first:
for short rows that costs more than the attention itself.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from rlhf.kernels.cpu_build import attention_library

LONGEST = 512
"""Tokens of a row beyond which torch's attention, with its larger products, is the faster one."""


class Call(ctypes.Structure):
    """Kept the same as in ``cpu_attention.cpp``, which says what each is."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "out", "norms", "d_out")),
        *((name, ctypes.c_void_p) for name in ("d_query", "d_key", "d_value", "rows", "groups")),
        *((name, ctypes.c_int64) for name in ("group_count", "heads", "key_heads", "dim")),
        *(
            (f"{name}_{part}", ctypes.c_int64)
            for name in ("query", "key", "value", "d_out")
            for part in ("token", "head")
        ),
        *((name, ctypes.c_int64) for name in ("window", "threads")),
        ("scale", ctypes.c_float),
    )


@dataclass(kw_only=True, slots=True)
class RowTable:
    """Where rows stand among N tokens, and what each begins with."""

    rows: Tensor
    """(R, 4) int64: first own token, own tokens, first token of the row it begins like, common tokens."""
    groups: Tensor
    """(G + 1,) int64, where the rows begin that begin like the same one, and the end."""
    longest: int
    """Tokens of the longest row, its beginning included."""

    @classmethod
    def of(cls, lengths: Sequence[int], leaders: Sequence[int], same: Sequence[int]) -> Self:
        """Of rows whose own tokens stand end to end.

        Args:
            lengths: own tokens of each row.
            leaders: a row that runs whole, whose tokens it begins with; itself where there is none.
            same: how many of them.
        """
        own, leader, common = (torch.tensor(part) for part in (lengths, leaders, same))
        starts = own.cumsum(0) - own
        order = leader.argsort(stable=True)
        rows = torch.stack([starts, own, starts[leader], common], dim=1)[order]
        counts = leader.bincount(minlength=len(own))
        groups = pad(counts[counts > 0].cumsum(0), (1, 0))
        return cls(rows=rows, groups=groups, longest=int((own + common).max()))


def has_row_attention(query: Tensor, key: Tensor, value: Tensor, table: RowTable) -> bool:
    """Whether :func:`row_attention` is there for these, and the faster way."""
    if (
        table.longest > LONGEST
        or query.device.type != "cpu"
        or not query.dtype == key.dtype == value.dtype == torch.float32
    ):
        return False
    return key.shape == value.shape and attention_library() is not None


def row_attention(
    query: Tensor, key: Tensor, value: Tensor, table: RowTable, *, scale: float, window: int | None
) -> Tensor:
    """Causal attention of each row to itself, its beginning included; differentiable once.

    Args:
        query: (heads, N, D).
        key: (key heads, N, D), of which each serves ``heads / key heads`` heads that follow each other.
        value: as ``key``.
        table: where rows stand among the N tokens.
        scale: factor of the products.
        window: tokens that one attends to, itself included; None for all before it.

    Returns:
        (N, heads, D).
    """
    window = table.longest if window is None else window
    found: Tensor = _RowAttention.apply(query, key, value, table, scale, window)
    return found


class _RowAttention(Function):
    """Saved are the inputs, the result, and the logarithm of each softmax's sum."""

    @staticmethod
    def forward(  # noqa: PLR0917  autograd takes no keywords
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, table: RowTable, scale: float, window: int
    ) -> Tensor:
        query, key, value = (_along_tokens(part) for part in (query, key, value))
        out = query.new_empty(query.shape)
        norms = query.new_empty(query.shape[:2])
        ctx.save_for_backward(query, key, value, out, norms)
        ctx.table, ctx.scale, ctx.window = table, scale, window
        _call(query, key, value, out, norms, table, scale, window)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, norms = ctx.saved_tensors
        upstream = upstream if upstream.stride(2) == 1 else upstream.contiguous()
        d_query = torch.empty_like(out)
        d_key, d_value = (key.new_zeros(key.shape) for _ in range(2))
        _call(
            *(query, key, value, out, norms, ctx.table, ctx.scale, ctx.window),
            gradients=(upstream, d_query, d_key, d_value),
        )
        return *(part.transpose(0, 1) for part in (d_query, d_key, d_value)), None, None, None


def _along_tokens(states: Tensor) -> Tensor:
    """(heads, N, D) → (N, heads, D), each head's numbers side by side in memory."""
    along = states.transpose(0, 1)
    return along if along.stride(2) == 1 else along.contiguous()


def _call(  # noqa: PLR0917  what forward and backward both read
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    norms: Tensor,
    table: RowTable,
    scale: float,
    window: int,
    gradients: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
) -> None:
    """Fill ``out`` and ``norms``, or from ``gradients``, that of ``out`` and room for those of the inputs."""
    upstream, d_query, d_key, d_value = (None,) * 4 if gradients is None else gradients
    tensors = {
        "query": query,
        "key": key,
        "value": value,
        "out": out,
        "norms": norms,
        "d_out": upstream,
        "d_query": d_query,
        "d_key": d_key,
        "d_value": d_value,
        "rows": table.rows,
        "groups": table.groups,
    }
    given = Call(
        **{name: None if part is None else part.data_ptr() for name, part in tensors.items()},
        **{
            f"{name}_{part}": 0 if states is None else states.stride(axis)
            for name, states in (("query", query), ("key", key), ("value", value), ("d_out", upstream))
            for axis, part in enumerate(("token", "head"))
        },
        group_count=len(table.groups) - 1,
        heads=query.shape[1],
        key_heads=key.shape[1],
        dim=query.shape[2],
        window=window,
        threads=torch.get_num_threads(),
        scale=scale,
    )
    compiled = attention_library()
    assert compiled is not None
    compiled.attend_rows(ctypes.byref(given))
