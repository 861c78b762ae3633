"""A decode cache at addresses that stay: a captured step finds it there in every rollout.

It has room for more rows and columns than a step needs. A step works on the first rows, and reads the first
columns, of the same buffers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf.models.decode_cache import DecodeCache, prefill


@dataclass(kw_only=True, slots=True)
class StaticCache:
    """Keys and values of R rows, up to C tokens each."""

    columns: int
    """C."""
    lengths: Tensor
    """(R,) int64 tokens of each row in the cache."""
    buffers: dict[int, tuple[Tensor, Tensor]]
    """Of each layer: keys and values, (R, key heads, C, D) each."""

    @classmethod
    def of(cls, model: Any, rows: int, columns: int) -> StaticCache:
        """Room for a model's states, whose shapes are seen by running one token; inside `our_attention`."""
        one = torch.zeros(1, 1, dtype=torch.int64, device=next(model.parameters()).device)
        small = DecodeCache(columns=1, lengths=one[0] + 1, reach=1)
        prefill(model, one, torch.ones_like(one, dtype=torch.bool), small)
        buffers = {
            layer: (_room(keys, rows, columns), _room(values, rows, columns))
            for layer, (keys, values) in small.buffers.items()
        }
        return cls(columns=columns, lengths=one.new_zeros(rows), buffers=buffers)

    def view(self, rows: int, reach: int) -> DecodeCache:
        """The first ``rows`` rows; what attends to them reads ``reach`` columns, and stores in any."""
        return DecodeCache(
            columns=self.columns,
            lengths=self.lengths[:rows],
            reach=reach,
            buffers={layer: (keys[:rows], values[:rows]) for layer, (keys, values) in self.buffers.items()},
        )

    def move(self, order: Tensor) -> None:
        """Row order[i] becomes row i, of (n,) int64 rows; one buffer after the other, in place."""
        for part in self._parts():
            part[: len(order)] = part[order]

    def _parts(self) -> Iterator[Tensor]:
        yield self.lengths
        for layer in self.buffers.values():
            yield from layer

    @property
    def bytes(self) -> int:
        """What keys and values take."""
        return sum(part.nbytes for layer in self.buffers.values() for part in layer)


def _room(states: Tensor, rows: int, columns: int) -> Tensor:
    """For states of (1, key heads, 1, D); zeros, for what is masked is multiplied by 0 and must be finite."""
    return states.new_zeros(rows, states.shape[1], columns, states.shape[3])


def repeats(model: Any) -> bool:
    """Whether a step is the same work whatever its tokens are, so that it can be captured.

    Experts get as many tokens as are sent to them, and rotary frequencies may follow the longest position:
    both ask the device in the middle of a step.
    """
    settings = dict(_settings(model.config.to_dict()))
    moving = {"dynamic", "longrope"} & {value for name, value in settings.items() if "rope_type" in name}
    return not moving and not any("expert" in name for name in settings)


def _settings(config: dict[str, Any], inside: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a configuration that says something, those of inner ones under their whole name."""
    for key, value in config.items():
        name = f"{inside}{key}"
        if isinstance(value, dict):
            yield from _settings(value, f"{name}.")
        elif value is not None and isinstance(value, str | int | float):
            yield name, value
