"""Tokens back into text."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Decoder(Protocol):
    """The part of a tokenizer that writes text."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """The text of one row of tokens."""


def decoded(tokens: Tensor, mask: Tensor, decoder: Decoder) -> list[str]:
    """The text of each row's tokens under the bool ``mask`` (B, L), without special tokens."""
    return [
        decoder.decode(row[kept].tolist(), skip_special_tokens=True)
        for row, kept in zip(tokens.cpu(), mask.cpu(), strict=True)
    ]
