"""Whole texts to learn from: alone, in pairs, ranked or labelled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.batch.rows import Rows


@dataclass(kw_only=True, slots=True)
class SequenceBatch(Rows):
    """Whole texts, right-padded, and which of their tokens are targets."""

    tokens: Tensor  # (B, L) int64, right-padded
    attention_mask: Tensor  # (B, L) bool, a prefix of the row
    mask: Tensor  # (B, L) bool, True on tokens to be predicted; False in column 0, which nothing precedes

    def __post_init__(self) -> None:
        B, L = self.tokens.shape
        self._expect("tokens", (B, L), torch.int64)
        self._expect("attention_mask", (B, L), torch.bool)
        self._expect("mask", (B, L), torch.bool)
        if self.mask[:, 0].any() or (self.mask & ~self.attention_mask).any():
            raise ValueError("SequenceBatch.mask marks a first token or padding as a target")

    @property
    def lengths(self) -> Tensor:
        """(B,) int64 tokens of each row, padding not counted."""
        return self.attention_mask.sum(1)

    def trimmed(self) -> SequenceBatch:
        """The same rows without columns that hold padding alone."""
        width = max(int(self.lengths.max()), 1)
        return SequenceBatch(
            tokens=self.tokens[:, :width],
            attention_mask=self.attention_mask[:, :width],
            mask=self.mask[:, :width],
        )


@dataclass(kw_only=True, slots=True)
class PreferenceBatch(Rows):
    """Pairs of responses to one prompt, the better one first."""

    chosen: SequenceBatch
    rejected: SequenceBatch
    margin: Tensor  # (B,) float32 by how much the chosen score should exceed the other; 0 when not given

    def __post_init__(self) -> None:
        self._expect("margin", (len(self.chosen),), torch.float32)
        if len(self.rejected) != len(self.chosen):
            raise ValueError(f"{len(self.chosen)} chosen and {len(self.rejected)} rejected sequences")


@dataclass(kw_only=True, slots=True)
class Comparisons(Rows):
    """Which responses to a prompt were compared, and how that ended. K responses, at most, to each prompt."""

    compared: Tensor  # (B, K, K) bool, True at [i, j] for a comparison of responses i and j, once for each
    label: Tensor  # (B, K, K) float32 probability that i is better than j; 1/2 is a tie
    margin: Tensor  # (B, K, K) float32 by how much the score of i should exceed that of j; 0 when not given

    def __post_init__(self) -> None:
        B, K, _ = self.compared.shape
        self._expect("compared", (B, K, K), torch.bool)
        self._expect("label", (B, K, K), torch.float32)
        self._expect("margin", (B, K, K), torch.float32)
        if not self.compared.flatten(1).any(1).all():
            raise ValueError("Comparisons.compared holds no comparison for a prompt (numerics D23)")

    @property
    def pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """(M,) int64 each: prompt, first and second response of every comparison."""
        prompt, first, second = self.compared.nonzero(as_tuple=True)
        return prompt, first, second

    def best(self) -> tuple[Tensor, Tensor]:
        """(B, K) bool each: the responses in a comparison, and those among them that lost none."""
        won = self.compared & (self.label > 0.5)
        lost = (self.compared & (self.label < 0.5)).any(2) | won.any(1)
        judged = self.compared.any(2) | self.compared.any(1)
        return judged, judged & ~lost


@dataclass(kw_only=True, slots=True)
class ComparisonBatch(Rows):
    """Responses to each prompt, up to K of them, and how they compare."""

    tokens: Tensor  # (B, K, L) int64 prompt and response, right-padded; all padding where there is none
    attention_mask: Tensor  # (B, K, L) bool, a prefix of the row
    mask: Tensor  # (B, K, L) bool, True on the tokens of the response
    judged: Comparisons

    def __post_init__(self) -> None:
        shape = tuple(self.tokens.shape)
        self._expect("tokens", shape, torch.int64)
        self._expect("attention_mask", shape, torch.bool)
        self._expect("mask", shape, torch.bool)
        found, expected = tuple(self.judged.compared.shape[:2]), shape[:2]
        if found != expected:
            raise ValueError(f"ComparisonBatch.judged is of {found} responses, expected {expected}")

    @property
    def real(self) -> Tensor:
        """(B, K) bool, the responses that are there."""
        return self.attention_mask.any(2)

    @property
    def lengths(self) -> Tensor:
        """(B, K) int64 tokens of each text, padding not counted."""
        return self.attention_mask.sum(2)

    def texts(self) -> SequenceBatch:
        """The N texts that are there: the first response to each prompt, then the second to each, …"""
        real = self.real.T  # (K, B)
        parts = {
            name: getattr(self, name).transpose(0, 1)[real] for name in ("tokens", "attention_mask", "mask")
        }
        return SequenceBatch(**parts).trimmed()

    def spread(self, scores: Tensor) -> Tensor:
        """(B, K) of (N,) numbers of ``texts()``; 0 where there is none."""
        real = self.real.T
        return scores.new_zeros(real.shape).index_put(real.nonzero(as_tuple=True), scores).T


@dataclass(kw_only=True, slots=True)
class LabelledBatch(Rows):
    """Single responses that somebody called good or bad."""

    text: SequenceBatch  # prompt and response
    mismatched: SequenceBatch  # the same prompt, and the response of another row
    desirable: Tensor  # (B,) bool, called good

    def __post_init__(self) -> None:
        self._expect("desirable", (len(self.text),), torch.bool)
        if len(self.mismatched) != len(self.text):
            raise ValueError(f"{len(self.text)} texts and {len(self.mismatched)} mismatched ones")
