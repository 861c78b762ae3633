"""Which rows make the fullest pass of a run, from its data, or from the limits of data that is not there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlhf.batch import PromptBatch, SequenceBatch
from rlhf.data.encoding import Encoded
from rlhf.data.fitting import Report
from rlhf.data.loaded import PreferenceSet, PromptSet, SupervisedSet
from rlhf.data.order import batch_indices, rank_share
from rlhf.data.sets import PromptData
from rlhf.planning.passes import Texts
from rlhf.trainers.micro_batches import Cut, dealt

STEPS = 200
"""Of a run, that are looked at for their fullest pass."""
FILLER = 64
"""Rows that stand for data that is not there."""

T = TypeVar("T")


@dataclass(kw_only=True, slots=True)
class Fullest:
    """The pass of a run that holds most: of several in a step not the first, which finds no gradients yet."""

    rows: list[int]
    """Numbers in the data."""
    passes: int
    """Of its step; with several, gradients of the others are there already."""


def fullest(
    count: int,
    sizes: Callable[[Tensor], list[int]],
    cut: Cut,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    ranks: int,
) -> Fullest:
    """Of the first `STEPS` steps of a run that learns from rows in their order.

    Args:
        count: rows of the data.
        sizes: tokens of the rows that an index names, of all that stands in one pass.
        cut: which rows of a rank share a pass.
        batch_size: rows of a step, over all ranks.
        steps: of the run.
        seed: of the order.
        ranks: how many.
    """
    most, found = -1, Fullest(rows=[], passes=0)
    for step in range(min(steps, STEPS)):
        index = batch_indices(step * batch_size, batch_size, count, seed)
        for rank in range(ranks):
            own = index[dealt(sizes(index), rank, ranks)]
            lengths = torch.tensor(sizes(own))
            parts = cut(lengths)
            for part in parts[1:] or parts:  # a later one finds gradients there
                filled = tokens_of(lengths[part], cut)
                if filled > most:
                    most, found = filled, Fullest(rows=own[part].tolist(), passes=len(parts))
    return found


def tokens_of(lengths: Tensor, cut: Cut) -> int:
    """That a pass computes."""
    return int(lengths.sum()) if cut.packed else len(lengths) * int(lengths.max())


def sequences(batch: SequenceBatch) -> Texts:
    """Whole texts of which the targets are scored."""
    scored = batch.mask[:, 1:] & batch.attention_mask[:, :-1]
    return Texts(tokens=batch.tokens, real=batch.attention_mask, scored=int(scored.sum()))


def is_there(path: str | None) -> bool:
    """Whether data can be read without a network."""
    return path is not None and Path(path).exists()


def filler_texts(length: int) -> SupervisedSet:
    """Rows of the greatest length, no two alike, all of them scored."""
    texts = [
        Encoded(tokens=[row % 97 + 1, *([1] * (length - 1))], targets=[False, *([True] * (length - 1))])
        for row in range(FILLER)
    ]
    return SupervisedSet(encoded=texts, pad_id=0, report=Report(source="the greatest length", read=FILLER))


def filler_pairs(length: int) -> PreferenceSet:
    """Pairs of such rows."""
    texts = filler_texts(length)
    half = FILLER // 2
    return PreferenceSet(
        chosen=texts.encoded[:half],
        rejected=texts.encoded[half:],
        margins=[0.0] * half,
        pad_id=0,
        report=texts.report,
    )


def filler_prompts(data: PromptData) -> PromptSet:
    """Prompts of the greatest length, no two alike."""
    prompts = [[row % 97 + 1, *([1] * (data.max_prompt_length - 1))] for row in range(FILLER)]
    report = Report(source=str(data.path), read=FILLER)
    return PromptSet(prompts=prompts, strings=[""] * FILLER, others=[{}] * FILLER, pad_id=0, report=report)


@dataclass(kw_only=True, slots=True)
class Rollouts:
    """Rollouts whose responses are all as long as they may be."""

    prompts: PromptSet
    count: int
    """Prompts of one, over all ranks."""
    samples: int
    new_tokens: int
    seed: int
    ranks: int

    @property
    def rows(self) -> int:
        """Of a rank."""
        return self.count * self.samples // self.ranks

    def prompt_batch(self, rollout: int, rank: int) -> PromptBatch:
        """A rank's prompts, a row for each response."""
        index = batch_indices(rollout * self.count, self.count, len(self.prompts), self.seed)
        own = rank_share(index, rank, self.ranks)
        return self.prompts.batch(own, samples=self.samples, groups=torch.arange(len(own)))

    def texts(self, prompts: PromptBatch, rows: Sequence[int] | Tensor) -> Texts:
        """Some of the rows, prompt and response; no two responses begin alike."""
        index = torch.as_tensor(rows)
        tokens, real = prompts.tokens[index], prompts.mask[index]
        responses = (1 + torch.arange(len(index)) % 89)[:, None].expand(-1, self.new_tokens)
        return Texts(
            tokens=torch.cat([tokens, responses], 1),
            real=torch.cat([real, torch.ones_like(responses, dtype=torch.bool)], 1),
            scored=len(index) * self.new_tokens,
            columns=self.new_tokens,
        )

    def fullest(self, cut: Cut, total: int, most: int | None = None) -> tuple[Texts, int]:
        """The pass of the first rollouts that computes most, and how many there are in its rollout.

        Args:
            cut: which rows share a pass.
            total: rollouts of the run.
            most: rows that are cut at a time, the longest; None for a whole rollout.
        """
        best, found = -1, None
        for prompts in self._each(total):
            lengths = prompts.mask.sum(1) + self.new_tokens
            kept = torch.arange(len(lengths))
            if most is not None:
                kept = lengths.argsort(descending=True, stable=True)[:most].sort().values
            parts = cut(lengths[kept], prompts.group[kept])
            for part in parts:
                filled = tokens_of(lengths[kept[part]], cut)
                if filled > best:
                    best, found = filled, (self.texts(prompts, kept[part]), len(parts))
        assert found is not None
        return found

    def _each(self, total: int) -> Iterator[PromptBatch]:
        for rollout in range(min(total, max(STEPS // self.ranks, 1))):
            for rank in range(self.ranks):
                yield self.prompt_batch(rollout, rank)

    def longest_prompts(self, total: int) -> PromptBatch:
        """The prompts of the rollout that holds most of them."""
        return max(self._each(total), key=lambda batch: int(batch.mask.sum()))


def loaded(data: Any, load: Callable[[], T], otherwise: Callable[[], T], notes: list[str]) -> T:
    """The rows of a data set that is there; else what stands for it, with a note that says so."""
    if is_there(data.path):
        logging.disable(logging.INFO)
        try:
            return load()
        finally:
            logging.disable(logging.NOTSET)
    notes.append(f"{data.path} is not there: every row is taken to be as long as it may be")
    return otherwise()
