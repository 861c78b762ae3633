"""Data sets in memory: encoded rows, from which batches are cut by index."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlhf.batch import ComparisonBatch, LabelledBatch, PreferenceBatch, PromptBatch, SequenceBatch
from rlhf.data.collation import pad_comparisons, pad_preferences, pad_prompts, pad_sequences
from rlhf.data.comparison_rows import Judgement
from rlhf.data.encoding import Encoded
from rlhf.data.fitting import Report
from rlhf.data.rows import PreferenceRow, Prompt, SupervisedRow


@dataclass(kw_only=True, slots=True)
class SupervisedSet:
    """Demonstrations, encoded."""

    encoded: list[Encoded]
    pad_id: int
    report: Report
    rows: list[SupervisedRow] = field(default_factory=list)
    """The rows as they were read, for what scores them and writes them with their scores."""

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row.tokens) for row in self.encoded]

    def sizes(self, index: Tensor) -> list[int]:
        """Tokens of the rows that ``index`` (B,) names."""
        return [len(self.encoded[i].tokens) for i in index.tolist()]

    def batch(self, index: Tensor) -> SequenceBatch:
        """The rows that ``index`` (B,) names, right-padded."""
        return pad_sequences([self.encoded[i] for i in index.tolist()], pad_id=self.pad_id)

    def columns(self, index: Tensor) -> list[dict[str, Any]]:
        """Other columns of the rows that ``index`` (B,) names."""
        return [self.rows[i].columns for i in index.tolist()]


@dataclass(kw_only=True, slots=True)
class PreferenceSet:
    """Pairs of responses, encoded."""

    chosen: list[Encoded]
    rejected: list[Encoded]
    margins: list[float]
    pad_id: int
    report: Report
    rows: list[PreferenceRow] = field(default_factory=list)
    """The rows as they were read, for what scores them and tells categories apart."""

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each pair's longer text."""
        sides = zip(self.chosen, self.rejected, strict=True)
        return [max(len(text.tokens) for text in pair) for pair in sides]

    def sizes(self, index: Tensor) -> list[int]:
        """Tokens of both texts of the pairs that ``index`` (B,) names."""
        return [len(self.chosen[i].tokens) + len(self.rejected[i].tokens) for i in index.tolist()]

    def batch(self, index: Tensor) -> PreferenceBatch:
        """The pairs that ``index`` (B,) names, right-padded."""
        rows = index.tolist()
        return pad_preferences(
            [self.chosen[i] for i in rows],
            [self.rejected[i] for i in rows],
            [self.margins[i] for i in rows],
            pad_id=self.pad_id,
        )

    def compared(self) -> ComparisonSet:
        """The same pairs, each as a prompt with two responses."""
        judgements = [[Judgement(first=0, second=1, margin=margin)] for margin in self.margins]
        texts = [list(pair) for pair in zip(self.chosen, self.rejected, strict=True)]
        return ComparisonSet(texts=texts, judgements=judgements, pad_id=self.pad_id, report=self.report)


@dataclass(kw_only=True, slots=True)
class ComparisonSet:
    """Prompts with the responses to each that were compared, encoded."""

    texts: list[list[Encoded]]
    judgements: list[list[Judgement]]
    """Of each prompt, at least one."""
    pad_id: int
    report: Report

    def __len__(self) -> int:
        return len(self.texts)

    def add(self, texts: list[Encoded], judgements: list[Judgement]) -> None:
        """One more prompt; responses that no judgement names are left out."""
        used = sorted({k for one in judgements for k in (one.first, one.second)})
        place = {k: number for number, k in enumerate(used)}
        self.texts.append([texts[k] for k in used])
        self.judgements.append(
            [
                Judgement(
                    first=place[one.first], second=place[one.second], label=one.label, margin=one.margin
                )
                for one in judgements
            ]
        )

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt's longest text."""
        return [max(len(text.tokens) for text in texts) for texts in self.texts]

    def sizes(self, index: Tensor) -> list[int]:
        """Tokens of all texts of the prompts that ``index`` (B,) names."""
        return [sum(len(text.tokens) for text in self.texts[i]) for i in index.tolist()]

    def batch(self, index: Tensor) -> ComparisonBatch:
        """The prompts that ``index`` (B,) names, texts right-padded."""
        rows = index.tolist()
        return pad_comparisons(
            [self.texts[i] for i in rows], [self.judgements[i] for i in rows], pad_id=self.pad_id
        )


@dataclass(kw_only=True, slots=True)
class LabelledSet:
    """Single responses labelled good or bad, encoded."""

    texts: list[Encoded]
    mismatched: list[Encoded]
    """Each row's prompt with the response of another row."""
    desirable: list[bool]
    pad_id: int
    report: Report

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row's longer text."""
        sides = zip(self.texts, self.mismatched, strict=True)
        return [max(len(text.tokens) for text in pair) for pair in sides]

    def sizes(self, index: Tensor) -> list[int]:
        """Tokens of both texts of the rows that ``index`` (B,) names."""
        return [len(self.texts[i].tokens) + len(self.mismatched[i].tokens) for i in index.tolist()]

    def batch(self, index: Tensor) -> LabelledBatch:
        """The rows that ``index`` (B,) names, right-padded."""
        rows = index.tolist()
        return LabelledBatch(
            text=pad_sequences([self.texts[i] for i in rows], pad_id=self.pad_id),
            mismatched=pad_sequences([self.mismatched[i] for i in rows], pad_id=self.pad_id),
            desirable=torch.tensor([self.desirable[i] for i in rows], dtype=torch.bool),
        )


@dataclass(kw_only=True, slots=True)
class PromptSet:
    """Prompts, encoded, with their texts and the other columns of their rows."""

    prompts: list[list[int]]
    strings: list[str]
    others: list[dict[str, Any]]
    pad_id: int
    report: Report
    given: list[Prompt] = field(default_factory=list)
    """The prompts as their rows have them, before any template."""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt."""
        return [len(tokens) for tokens in self.prompts]

    def batch(self, index: Tensor, *, samples: int = 1, groups: Tensor | None = None) -> PromptBatch:
        """The prompts that ``index`` (N,) names, each ``samples`` times in succession, left-padded.

        Args:
            index: (N,) int64.
            samples: rows of each prompt.
            groups: (N,) int64 number of each prompt's group; 0, 1, … when not given.
        """
        groups = torch.arange(len(index)) if groups is None else groups
        rows = index.repeat_interleave(samples)
        tokens = [self.prompts[i] for i in rows.tolist()]
        return pad_prompts(tokens, rows, groups.repeat_interleave(samples), pad_id=self.pad_id)

    def texts(self, index: Tensor) -> list[str]:
        """The prompts as the model reads them, without a begin token."""
        return [self.strings[i] for i in index.tolist()]

    def columns(self, index: Tensor) -> list[dict[str, Any]]:
        """The other fields of the prompts' rows, as stored."""
        return [self.others[i] for i in index.tolist()]
