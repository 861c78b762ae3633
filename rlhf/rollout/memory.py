"""What decoding takes, computed before any of it is taken."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.batch import PromptBatch
from rlhf.models.actor import Actor
from rlhf.models.decode_cache import pass_tokens, runs, token_bytes
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
    """Keys and values of a row."""
    drawn: int
    """Of a row, while its token is drawn."""
    moved: int
    """Of a row, while rows move."""
    prompts: int
    """Of one pass over prompts."""
    captured: bool = False
    """By a GPU, whose graphs keep their memory."""

    @classmethod
    def of(
        cls, actor: Actor, prompts: PromptBatch, decoding: Decoding, columns: int, *, captured: bool
    ) -> Plan:
        """For rows of ``columns`` tokens at most; the model is in eval mode, inside `our_attention`."""
        row, lengths = token_bytes(actor.model) * columns, prompts.mask.sum(1)
        different = int(lengths[runs(prompts.tokens, prompts.mask)].sum())
        device = prompts.tokens.device
        once = min(different, max(pass_tokens(device), int(lengths.max())))
        logit = max(logit_bytes(actor.head), decoding.logit_bytes(device))
        return cls(
            row=row,
            drawn=logit * actor.vocabulary,
            moved=int(KEPT * row / (2 * actor.model.config.num_hidden_layers)),
            prompts=once * prompt_bytes(actor.model),
            captured=captured and device.type == "cuda",
        )

    def bytes(self, rows: int) -> int:
        """At most, with so many rows."""
        return rows * self._always + max(rows * self._sometimes, self.prompts)

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
        return min(memory // (self._always + self._sometimes), (memory - self.prompts) // self._always)
