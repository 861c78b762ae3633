"""Batches: dataclasses of tensors, one type per stage, the shape beside each field.

B rows, P prompt positions (left-padded), T response positions (right-padded), L positions of a
right-padded sequence. Index t of a ``(B, T)`` tensor is response token t; a value at t is of the state
*before* that token. Masks are bool, True = real. Masked positions hold 0, and nothing reads them.

A rollout of two rows, P = 3 and T = 4 (``·`` is PAD, ``$`` the end token)::

    tokens            ·  a  b | c  d  $  ·        x  y  z | u  v  w  q
    prompt_mask       0  1  1                     1  1  1
    mask                        1  1  1  0                  1  1  1  1
    ended                            True                      False
    position_ids      0  0  1   2  3  4  4        0  1  2   3  4  5  6
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad


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


@dataclass(kw_only=True, slots=True)
class PromptBatch(Rows):
    """Prompts to be answered, one row per response wanted."""

    tokens: Tensor  # (B, P) int64, left-padded
    mask: Tensor  # (B, P) bool, True on the prompt's own tokens, a suffix of the row
    index: Tensor  # (B,) int64 row of the prompt in its data set
    group: Tensor  # (B,) int64 equal numbers are responses to the same drawn prompt

    def __post_init__(self) -> None:
        B, P = self.tokens.shape
        self._expect("tokens", (B, P), torch.int64)
        self._expect("mask", (B, P), torch.bool)
        self._expect("index", (B,), torch.int64)
        self._expect("group", (B,), torch.int64)


@dataclass(kw_only=True, slots=True)
class Rollout(Rows):
    """Prompts and the responses sampled for them."""

    tokens: Tensor  # (B, P+T) int64, [prompt | response]
    prompt_mask: Tensor  # (B, P) bool
    mask: Tensor  # (B, T) bool, True up to and including the end token; a prefix of the row
    ended: Tensor  # (B,) bool, the response ended by itself; False when it was cut at T
    sampler_logprobs: Tensor  # (B, T) log-prob of each token as the sampler drew it
    index: Tensor  # (B,) int64 row of the prompt in its data set
    group: Tensor  # (B,) int64 equal numbers are responses to the same drawn prompt

    def __post_init__(self) -> None:
        B, P = self.prompt_mask.shape
        T = self.mask.shape[1]
        self._expect("tokens", (B, P + T), torch.int64)
        self._expect("prompt_mask", (B, P), torch.bool)
        self._expect("mask", (B, T), torch.bool)
        self._expect("ended", (B,), torch.bool)
        self._expect("sampler_logprobs", (B, T), torch.float32)
        self._expect("index", (B,), torch.int64)
        self._expect("group", (B,), torch.int64)
        if (self.mask[:, 1:] & ~self.mask[:, :-1]).any():
            raise ValueError("Rollout.mask has a gap: a response must be a contiguous prefix (numerics D5)")

    @property
    def prompts(self) -> PromptBatch:
        """The prompts that were answered, a row for each response."""
        width = self.prompt_mask.shape[1]
        return PromptBatch(
            tokens=self.tokens[:, :width], mask=self.prompt_mask, index=self.index, group=self.group
        )

    @property
    def responses(self) -> Tensor:
        """(B, T) int64 response tokens."""
        return self.tokens[:, self.prompt_mask.shape[1] :]

    @property
    def attention_mask(self) -> Tensor:
        """(B, P+T) bool, prompt and response."""
        return torch.cat([self.prompt_mask, self.mask], dim=1)

    @property
    def lengths(self) -> Tensor:
        """(B,) int64 response tokens of each row, the end token included."""
        return self.mask.sum(1)

    def after(self, prompts: PromptBatch) -> Rollout:
        """The same responses after other prompts: what the policy alone is to have read is taken away."""
        return Rollout(
            tokens=torch.cat([prompts.tokens, self.responses], dim=1),
            prompt_mask=prompts.mask,
            mask=self.mask,
            ended=self.ended,
            sampler_logprobs=self.sampler_logprobs,
            index=self.index,
            group=self.group,
        )

    def widened(self, prompt: int, response: int) -> Rollout:
        """The same rows with padding up to ``prompt`` and ``response`` columns."""
        left, right = prompt - self.prompt_mask.shape[1], response - self.mask.shape[1]
        return Rollout(
            tokens=pad(self.tokens, (left, right)),
            prompt_mask=pad(self.prompt_mask, (left, 0)),
            mask=pad(self.mask, (0, right)),
            ended=self.ended,
            sampler_logprobs=pad(self.sampler_logprobs, (0, right)),
            index=self.index,
            group=self.group,
        )

    def trimmed(self) -> Rollout:
        """The same rows without prompt and response columns that hold padding alone."""
        P, T = self.prompt_mask.shape[1], max(int(self.lengths.max()), 1)
        first = P - max(int(self.prompt_mask.sum(1).max()), 1)
        return Rollout(
            tokens=self.tokens[:, first : P + T],
            prompt_mask=self.prompt_mask[:, first:],
            mask=self.mask[:, :T],
            ended=self.ended,
            sampler_logprobs=self.sampler_logprobs[:, :T],
            index=self.index,
            group=self.group,
        )


@dataclass(kw_only=True, slots=True)
class Experience(Rows):
    """A scored rollout: everything an update needs, fixed while the policy moves."""

    rollout: Rollout
    old_logprobs: Tensor  # (B, T) log π_old of each token
    advantages: Tensor  # (B, T)
    ref_logprobs: Tensor | None = None  # (B, T) log π_ref of each token; None without a reference
    returns: Tensor | None = None  # (B, T) targets of the critic; None without one
    old_values: Tensor | None = None  # (B, T) critic before the update; None without one

    def __post_init__(self) -> None:
        shape = tuple(self.rollout.mask.shape)
        for name in ("old_logprobs", "advantages"):
            self._expect(name, shape, torch.float32)
        for name in ("ref_logprobs", "returns", "old_values"):
            if getattr(self, name) is not None:
                self._expect(name, shape, torch.float32)

    def trimmed(self) -> Experience:
        """The same rows without columns that hold padding alone."""
        rollout = self.rollout.trimmed()
        T = rollout.mask.shape[1]
        return Experience(
            rollout=rollout,
            old_logprobs=self.old_logprobs[:, :T],
            advantages=self.advantages[:, :T],
            ref_logprobs=None if self.ref_logprobs is None else self.ref_logprobs[:, :T],
            returns=None if self.returns is None else self.returns[:, :T],
            old_values=None if self.old_values is None else self.old_values[:, :T],
        )


@dataclass(kw_only=True, slots=True)
class Prefixes(Rows):
    """Responses by student and teacher together; what stands before each token is a state to learn in."""

    rollout: Rollout
    by_teacher: Tensor  # (B, T) bool, the teacher drew the token; False on padding

    def __post_init__(self) -> None:
        self._expect("by_teacher", tuple(self.rollout.mask.shape), torch.bool)

    def widened(self, prompt: int, response: int) -> Prefixes:
        """The same rows with padding up to ``prompt`` and ``response`` columns."""
        right = response - self.by_teacher.shape[1]
        return Prefixes(
            rollout=self.rollout.widened(prompt, response), by_teacher=pad(self.by_teacher, (0, right))
        )

    def trimmed(self) -> Prefixes:
        """The same rows without columns that hold padding alone."""
        rollout = self.rollout.trimmed()
        return Prefixes(rollout=rollout, by_teacher=self.by_teacher[:, : rollout.mask.shape[1]])


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
