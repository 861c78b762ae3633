"""What all batches can: rows that are selected, moved and put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Self, TypeVar

import torch
from torch import Tensor


class Rows:
    """A dataclass of tensors and other ``Rows`` that all have the same number of rows."""

    __slots__ = ()

    def _parts(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(next(iter(self._parts().values())))

    def rows(self, index: Tensor) -> Self:
        """The rows that ``index`` (int64 or bool) selects, as a batch of the same type."""
        return type(self)(**{name: _select(part, index) for name, part in self._parts().items()})

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""
        moved = {name: None if part is None else part.to(device) for name, part in self._parts().items()}
        return type(self)(**moved)

    def _expect(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        tensor = getattr(self, name)
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{type(self).__name__}.{name} has shape {tuple(tensor.shape)}, expected {shape}"
            )
        if tensor.dtype != dtype:
            raise ValueError(f"{type(self).__name__}.{name} is {tensor.dtype}, expected {dtype}")


def _select(part: Tensor | Rows | None, index: Tensor) -> Tensor | Rows | None:
    if part is None or isinstance(part, Tensor):
        return None if part is None else part[index]
    return part.rows(index)


R = TypeVar("R", bound=Rows)


def concatenate(batches: Sequence[R]) -> R:
    """One batch with the rows of all, which must agree in every other dimension."""
    first = batches[0]
    joined: dict[str, Any] = {}
    for name, part in first._parts().items():
        pieces = [getattr(batch, name) for batch in batches]
        if part is None:
            joined[name] = None
        elif isinstance(part, Tensor):
            joined[name] = torch.cat(pieces)
        else:
            joined[name] = concatenate(pieces)
    return type(first)(**joined)


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that count real tokens only, so that left padding moves none of them (numerics D3).

    Args:
        attention_mask: (B, L) bool.

    Returns:
        (B, L) int64; 0 on left padding, the last position repeated on right padding.
    """
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)
