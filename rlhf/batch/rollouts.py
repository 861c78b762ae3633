"""Prompts, the responses to them, and what is known of these."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlhf.batch.rows import Rows


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
