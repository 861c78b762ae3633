"""Keys and values of rows that a compiled step decodes: a prompt's stand once, for all rows after it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.kernels.cpu_step import advance
from rlhf.models.decode_step import DecodeStep

Buffers = dict[int, tuple[Tensor, Tensor]]
"""Of each layer: keys and values."""


@dataclass(kw_only=True, slots=True)
class SharedCache:
    """What B rows have read. A row that leaves the batch leaves its slot behind: nothing is moved."""

    step: DecodeStep
    prompts: Buffers
    """(prompts, key heads, P, D), each prompt in the first columns."""
    own: Buffers
    """(slots, key heads, T, D), what follows the prompt."""
    prompt: Tensor
    """(B,) int64, which prompt each row began with."""
    begun: Tensor
    """(B,) int64 tokens of that prompt."""
    lengths: Tensor
    """(B,) int64 tokens of each row."""
    slots: Tensor
    """(B,) int64, where the row's own tokens stand."""

    @classmethod
    def after(
        cls, step: DecodeStep, prompts: Buffers, lengths: Tensor, prompt: Tensor, room: int
    ) -> SharedCache:
        """Rows that have read their prompts.

        Args:
            step: the model's.
            prompts: as the prefill left them.
            lengths: (prompts,) int64 tokens of each.
            prompt: (B,) int64, which one each row begins with.
            room: T, tokens that each row will need.
        """
        own: Buffers = {}
        for layer, (keys, values) in prompts.items():
            shapes = ((len(prompt), part.shape[1], room, part.shape[3]) for part in (keys, values))
            own_keys, own_values = (keys.new_empty(shape) for shape in shapes)
            own[layer], here = (own_keys, own_values), step.layers[layer]
            here.shared_keys, here.shared_values = keys.data_ptr(), values.data_ptr()
            here.keys, here.values = own_keys.data_ptr(), own_values.data_ptr()
        step.step.columns, step.step.shared_columns = room, prompts[0][0].shape[2]
        begun = lengths[prompt]
        return cls(
            step=step,
            prompts=prompts,
            own=own,
            prompt=prompt,
            begun=begun,
            lengths=begun,
            slots=torch.arange(len(prompt)),
        )

    @property
    def bytes(self) -> int:
        """What the buffers take."""
        layers = (*self.prompts.values(), *self.own.values())
        return sum(part.nbytes for layer in layers for part in layer)

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but those of ``rows`` (int64)."""
        self.prompt, self.begun = self.prompt[rows], self.begun[rows]
        self.lengths, self.slots = self.lengths[rows], self.slots[rows]

    def advance(self, tokens: Tensor) -> Tensor:
        """(B, H) states after the last norm of one more token (B,) of each row, which is kept."""
        step = self.step.step
        places = (self.lengths, self.prompt, self.begun, self.slots)
        for name, place in zip(("lengths", "prompts", "begun", "slots"), places, strict=True):
            setattr(step, name, place.data_ptr())
        states = advance(step, tokens)
        self.lengths = self.lengths + 1
        return states
