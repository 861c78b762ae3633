"""Responses while they grow, and what ends one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.batch import Rows
from rlhf.kernels.drawing import Drawn
from rlhf.rewards.texts import Decoder

Columns = int | slice | Tensor
"""Which tokens of every response: a number, (1,) on the device, or several."""


@dataclass(kw_only=True, slots=True)
class Responses(Rows):
    """Room for responses of T tokens at most, filled in place."""

    tokens: Tensor  # (B, T) int64, PAD after a response's end
    logprobs: Tensor  # (B, T) float32
    mask: Tensor  # (B, T) bool
    ended: Tensor  # (B,) bool

    @staticmethod
    def empty(like: Tensor, rows: int, length: int, pad: int) -> Responses:
        """Nothing yet, on the device of ``like`` (int64)."""
        tokens = like.new_full((rows, length), pad)
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        logprobs = torch.zeros_like(tokens, dtype=torch.float32)
        return Responses(tokens=tokens, logprobs=logprobs, mask=mask, ended=mask.new_zeros(rows))

    def slice(self, rows: slice) -> Responses:
        """Some of the rows, in the same memory."""
        return Responses(
            tokens=self.tokens[rows],
            logprobs=self.logprobs[rows],
            mask=self.mask[rows],
            ended=self.ended[rows],
        )

    def put(self, t: Columns, rows: Tensor, drawn: Drawn, alive: Tensor) -> None:
        """Token t of ``rows`` (n,), for those of them that are ``alive`` (n,); (n, k) each for k tokens."""
        self.tokens[rows, t] = torch.where(alive, drawn.tokens, self.tokens[rows, t])
        self.logprobs[rows, t] = torch.where(alive, drawn.logprobs, 0.0).float()
        self.mask[rows, t] = alive


class Steps:
    """The last tokens of the rows of one batch, to be written together: each write has a price of its own."""

    def __init__(self, out: Responses) -> None:
        self._out, self._first = out, 0
        self._drawn: list[Drawn] = []
        self._alive: list[Tensor] = []

    def add(self, drawn: Drawn, alive: Tensor) -> None:
        """The next token of every row (n,), and for which of them it counts."""
        self._drawn.append(drawn)
        self._alive.append(alive)

    def write(self, rows: Tensor) -> None:
        """What was added since the last time, into ``rows`` (n,) of the responses."""
        if not self._drawn:
            return
        columns = slice(self._first, self._first + len(self._drawn))
        drawn = Drawn(*(torch.stack(parts, dim=1) for parts in zip(*self._drawn, strict=True)))
        self._out.put(columns, rows, drawn, torch.stack(self._alive, dim=1))
        self._first, self._drawn, self._alive = columns.stop, [], []


@dataclass(kw_only=True, slots=True)
class StopStrings:
    """Ends a response whose text holds one of the strings."""

    strings: Sequence[str]
    """What ends it; the response keeps it."""
    tokenizer: Decoder
    """Writes tokens as text."""

    def __post_init__(self) -> None:
        if not self.strings or not all(self.strings):
            raise ValueError(f"StopStrings.strings must hold texts of a character, got {list(self.strings)}")

    def __call__(self, tokens: list[int]) -> bool:
        """Whether the last token completed a string."""
        longest = max(len(string.encode()) for string in self.strings)  # a token writes a byte at least
        text = self.tokenizer.decode(tokens[-longest - 1 :], skip_special_tokens=True)
        return any(string in text for string in self.strings)


@dataclass(kw_only=True, slots=True)
class Stops:
    """Everything that ends a response."""

    ends: Tensor
    """(E,) int64 end tokens."""
    strings: StopStrings | None
    """Needs the tokens on the host at every step."""

    def __call__(self, drawn: Tensor, rows: Tensor, t: int, out: Responses, alive: Tensor) -> Tensor:
        """(n,) bool, whether ``drawn`` (n,), token t of ``rows`` (n,), is the last; read where ``alive``."""
        ended = torch.isin(drawn, self.ends)
        if self.strings is None:
            return ended
        texts = out.tokens[rows, : t + 1].tolist()
        found = [live and self.strings(text) for text, live in zip(texts, alive.tolist(), strict=True)]
        return ended | torch.tensor(found, device=ended.device)
