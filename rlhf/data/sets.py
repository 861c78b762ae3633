"""Data sets as components: the configuration says where rows are, ``load`` reads, checks and encodes them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from rlhf.data.encoding import Encoded, Targets, encode_prompts, encode_supervised, prompt_text
from rlhf.data.fitting import Overlong, Report, too_long, truncated
from rlhf.data.loaded import PreferenceSet, PromptSet, SupervisedSet
from rlhf.data.rows import PreferenceRow, PromptRow, SupervisedRow, preference_row, prompt_row, supervised_row
from rlhf.data.sources import Row
from rlhf.data.stored import StoredRows, expect_at_least
from rlhf.data.verdicts import winning_sides

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(kw_only=True, slots=True)
class SupervisedData(StoredRows):
    """Demonstrations: rows of a prompt and a response, or of messages that the assistant ends."""

    prompt_field: str = "prompt"
    """Field with the prompt, a string or a list of messages."""
    response_field: str = "response"
    """Field with the response."""
    messages_field: str = "messages"
    """Field with a whole conversation; a row that has it needs neither prompt nor response."""
    as_chat: bool = False
    """Read a plain string prompt as one user message, so that the chat template applies."""
    targets: Targets = Targets.assistant
    """Which tokens are trained: response, assistant (every turn of the assistant) or all."""
    max_length: int = 512
    """Most tokens in a row, prompt and response together."""
    overlong: Overlong = Overlong.refuse
    """What happens to longer rows: refuse, drop or truncate."""

    def __post_init__(self) -> None:
        StoredRows.__post_init__(self)
        expect_at_least(self, 2, "max_length")

    def load(self, tokenizer: PreTrainedTokenizerBase) -> SupervisedSet:
        """The rows, checked and encoded; what was left out is logged and reported."""
        rows, report = self.parsed(self._parse)
        encoded: list[Encoded] = []
        kept = []
        for row, whole in zip(rows, encode_supervised(rows, tokenizer, targets=self.targets), strict=True):
            fitted = within_limit([whole], self.max_length, self.overlong, report, row.where)
            if fitted is not None:
                encoded.extend(fitted)
                kept.append(row)
                report.keep(truncated=fitted[0] is not whole)
        finish(report)
        return SupervisedSet(encoded=encoded, pad_id=pad_id_of(tokenizer), report=report, rows=kept)

    def _parse(self, row: Row) -> SupervisedRow:
        return supervised_row(
            row,
            prompt_field=self.prompt_field,
            response_field=self.response_field,
            messages_field=self.messages_field,
            as_chat=self.as_chat,
        )


@dataclass(kw_only=True, slots=True)
class PreferenceData(StoredRows):
    """Pairs: rows of a prompt, a chosen and a rejected response, as text or as messages."""

    prompt_field: str = "prompt"
    """Field with the prompt; may be absent where the responses are conversations that begin with it."""
    chosen_field: str = "chosen"
    """Field with the better response."""
    rejected_field: str = "rejected"
    """Field with the worse response."""
    margin_field: str = "margin"
    """Field with the least difference of the two scores; 0 where it is absent."""
    as_chat: bool = False
    """Read a plain string prompt as one user message, so that the chat template applies."""
    max_length: int = 512
    """Most tokens in a text, prompt and response together."""
    overlong: Overlong = Overlong.refuse
    """What happens to a pair with a longer text: refuse, drop or truncate."""

    def __post_init__(self) -> None:
        StoredRows.__post_init__(self)
        expect_at_least(self, 2, "max_length")

    def load(self, tokenizer: PreTrainedTokenizerBase) -> PreferenceSet:
        """The pairs, checked and encoded; pairs with identical tokens are dropped (numerics D6)."""
        return pair_set(
            *self.parsed(self._parse), tokenizer, max_length=self.max_length, overlong=self.overlong
        )

    def _parse(self, row: Row) -> PreferenceRow | None:
        return won_pair(
            row,
            prompt_field=self.prompt_field,
            sides=(self.chosen_field, self.rejected_field),
            margin_field=self.margin_field,
            as_chat=self.as_chat,
        )


@dataclass(kw_only=True, slots=True)
class PromptData(StoredRows):
    """Prompts to be answered; the other fields of a row reach the reward function."""

    prompt_field: str = "prompt"
    """Field with the prompt, a string or a list of messages."""
    as_chat: bool = False
    """Read a plain string prompt as one user message, so that the chat template applies."""
    max_prompt_length: int = 256
    """Most tokens in a prompt, the begin token included."""
    overlong: Overlong = Overlong.refuse
    """What happens to longer prompts: refuse or drop."""

    def __post_init__(self) -> None:
        StoredRows.__post_init__(self)
        expect_at_least(self, 1, "max_prompt_length")
        if self.overlong is Overlong.truncate:
            raise ValueError(
                "PromptData.overlong must be refuse or drop, got truncate: a cut prompt is another"
            )

    def load(self, tokenizer: PreTrainedTokenizerBase) -> PromptSet:
        """The prompts, checked and encoded; what was left out is logged and reported."""
        rows, report = self.parsed(self._parse)
        result = PromptSet(prompts=[], strings=[], others=[], pad_id=pad_id_of(tokenizer), report=report)
        for row, prompt in zip(rows, encode_prompts(rows, tokenizer), strict=True):
            if too_long(len(prompt), self.max_prompt_length, overlong=self.overlong, where=row.where):
                report.drop(f"longer than {self.max_prompt_length} tokens")
                continue
            result.prompts.append(prompt)
            result.strings.append(prompt_text(row, tokenizer))
            result.others.append(row.columns)
            result.given.append(row.prompt)
            report.keep()
        finish(report)
        return result

    def _parse(self, row: Row) -> PromptRow:
        return prompt_row(row, prompt_field=self.prompt_field, as_chat=self.as_chat)


def won_pair(
    row: Row, *, prompt_field: str, sides: tuple[str, str], margin_field: str = "margin", as_chat: bool
) -> PreferenceRow | None:
    """The row's pair, by its fields or as an answered query; None where neither response has won.

    Raises:
        ValueError: see `rlhf.data.rows.preference_row` and `rlhf.data.verdicts.winning_sides`.
    """
    found = winning_sides(row, *sides)
    if found is None:
        return None
    return preference_row(
        row,
        prompt_field=prompt_field,
        chosen_field=found[0],
        rejected_field=found[1],
        margin_field=margin_field,
        as_chat=as_chat,
    )


def pair_set(
    found: Sequence[PreferenceRow | None],
    report: Report,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    overlong: Overlong,
) -> PreferenceSet:
    """Pairs encoded, what does not fit left out and counted, and what is None as without a winner."""
    rows = decided(found, report)
    result = PreferenceSet(chosen=[], rejected=[], margins=[], pad_id=pad_id_of(tokenizer), report=report)
    for row, *whole in zip(rows, *_sides(rows, tokenizer), strict=True):
        fitted = within_limit(whole, max_length, overlong, report, row.where)
        if fitted is None:
            continue
        chosen, rejected = fitted
        if chosen.tokens == rejected.tokens:
            report.drop("chosen and rejected are identical")
            continue
        result.chosen.append(chosen)
        result.rejected.append(rejected)
        result.margins.append(row.margin)
        result.rows.append(row)
        report.keep(truncated=fitted is not whole)
    finish(report)
    return result


def decided(rows: Sequence[T | None], report: Report) -> list[T]:
    """The rows that name a winner; the others, which are None, are counted."""
    for row in rows:
        if row is None:
            report.drop("no winner")
    return [row for row in rows if row is not None]


def within_limit(
    texts: Sequence[Encoded], limit: int, overlong: Overlong, report: Report, where: str
) -> Sequence[Encoded] | None:
    """The texts of one row within the limit, or None when the row was dropped."""
    if not too_long(max(len(text.tokens) for text in texts), limit, overlong=overlong, where=where):
        return texts
    if overlong is Overlong.drop:
        report.drop(f"longer than {limit} tokens")
        return None
    cut = truncated(texts, limit)
    if cut is None:
        report.drop("nothing of the response within the limit")
    return cut


def _sides(rows: Sequence[PreferenceRow], tokenizer: PreTrainedTokenizerBase) -> tuple[list[Encoded], ...]:
    """The chosen texts and the rejected ones."""
    demonstrations = [
        [SupervisedRow(prompt=row.prompt, response=text, columns={}, where=row.where) for row, text in side]
        for side in ([(row, row.chosen) for row in rows], [(row, row.rejected) for row in rows])
    ]
    return tuple(encode_supervised(side, tokenizer, targets=Targets.response) for side in demonstrations)


def finish(report: Report) -> None:
    """Log the account, and refuse a set of which nothing is left."""
    log.info("%s", report)
    if not report.kept:
        raise ValueError(f"no row is left: {report}")


def pad_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokenizer's PAD."""
    if tokenizer.pad_token_id is None:
        raise ValueError("the tokenizer has no PAD; load it with load_tokenizer, which gives it one")
    return int(tokenizer.pad_token_id)
