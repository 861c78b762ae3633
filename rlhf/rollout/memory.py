"""What decoding takes, computed before any of it is taken."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import torch

from rlhf.batch import PromptBatch
from rlhf.models.actor import Actor
from rlhf.models.decode_cache import pass_tokens, runs, token_bytes
from rlhf.models.decode_step import decode_step
from rlhf.models.footprint import logit_bytes, prompt_bytes
from rlhf.rollout.decoding import Decoding

KEPT = 0.8
"""Share of its rows that, when no more are alive, makes a smaller batch: few copies, and few dead rows."""


@dataclass(kw_only=True, slots=True)
class Plan:
    """Bytes for rows that are decoded together, weights, prompts and responses themselves not counted.

    Keys and values are there all the time. With them there is, one after the other, what a pass over prompts
    holds; what a draw holds; and a second copy of a layer's keys or values while rows leave the batch. What a
    captured draw holds is never given back.
    """

    row: int
    """Keys and values of a row; of its response alone where prompts are shared."""
    drawn: int
    """Of a row, while its token is drawn."""
    moved: int
    """Of a row, while rows move."""
    prompts: int
    """Of one pass over prompts."""
    captured: bool = False
    """By a GPU, whose graphs keep their memory."""
    shared: int = 0
    """Keys and values of a prompt that stand once for all its rows; 0 where each row has its own."""
    different: int = 0
    """Prompts of which none is the one before it."""

    @classmethod
    def of(
        cls,
        actor: Actor,
        prompts: PromptBatch,
        decoding: Decoding,
        columns: int,
        *,
        captured: bool,
        device: torch.device | None = None,
    ) -> Plan:
        """For rows of ``columns`` tokens at most; the model is in eval mode, inside `our_attention`.

        A ``device`` is named where it is not the prompts': for a model without numbers.
        """
        token, lengths = token_bytes(actor.model), prompts.mask.sum(1)
        first, longest = runs(prompts.tokens, prompts.mask), int(lengths.max())
        device = prompts.tokens.device if device is None else device
        once = min(int(lengths[first].sum()), max(pass_tokens(device), longest))
        logit = max(logit_bytes(actor.head), decoding.logit_bytes(device))
        drawn, passes = logit * actor.vocabulary, once * prompt_bytes(actor.model)
        step = None if captured or device.type != "cpu" else decode_step(actor.model, columns)
        if step is not None:
            return cls(
                row=token * (columns - longest),
                drawn=max(drawn + step.state_bytes, step.row_bytes),
                moved=0,
                prompts=passes,
                shared=token * longest,
                different=int(first.sum()),
            )
        row = token * columns
        return cls(
            row=row,
            drawn=drawn,
            moved=int(KEPT * row / (2 * actor.model.config.num_hidden_layers)),
            prompts=passes,
            captured=captured and device.type == "cuda",
        )

    def bytes(self, rows: int) -> int:
        """At most, with so many rows."""
        decoding = rows * (self._always + self._sometimes)
        if self.shared:  # rows get their own caches after the last pass over prompts
            return min(rows, self.different) * self.shared + max(decoding, self.prompts)
        return max(decoding, rows * self._always + self.prompts)

    def kept(self, rows: int) -> int:
        """Of :meth:`bytes`, what is there all the time: of captured steps also between rollouts."""
        return rows * self._always + min(rows, self.different) * self.shared

    @property
    def _always(self) -> int:
        return self.row + (self.drawn if self.captured else 0)

    @property
    def _sometimes(self) -> int:
        return self.moved if self.captured else max(self.drawn, self.moved)

    def rows_within(self, memory: int) -> int:
        """The most rows that ``memory`` bytes are enough for.

        Raises:
            ValueError: they are not enough for one.
        """
        least = self.bytes(1)
        if memory < least:
            raise ValueError(f"decoding one row takes {least} bytes, and {memory} are given: give more")
        return bisect_right(range(1, memory // (self._always + self._sometimes) + 1), memory, key=self.bytes)
