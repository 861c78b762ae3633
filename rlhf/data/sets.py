"""Data sets as components: the configuration says where rows are, ``load`` reads, checks and encodes them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from rlhf.data.encoding import Encoded, Targets, encode_prompts, encode_supervised, prompt_text
from rlhf.data.fitting import Overlong, Report, too_long, truncated
from rlhf.data.loaded import PreferenceSet, PromptSet, SupervisedSet
from rlhf.data.rows import PreferenceRow, PromptRow, SupervisedRow, preference_row, prompt_row, supervised_row
from rlhf.data.sources import Row, read_rows

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(kw_only=True, slots=True)
class SupervisedData:
    """Demonstrations: rows of a prompt and a response, or of messages that the assistant ends."""

    path: str | None = "???"
    """JSONL or Parquet file, folder, or the name of a data set on the hub."""
    split: str = "train"
    """Part of a folder or of a named data set; a single file is read whole."""
    config: str | None = None
    """Configuration of a named data set."""
    limit: int | None = None
    """Read only the first rows, this many."""
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
        expect_at_least("SupervisedData.max_length", self.max_length, 2)
        expect_at_least("SupervisedData.limit", self.limit, 1)

    def load(self, tokenizer: PreTrainedTokenizerBase) -> SupervisedSet:
        """The rows, checked and encoded; what was left out is logged and reported."""
        rows, report = parsed_rows(self.path, self.split, self.config, self.limit, self._parse)
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
class PreferenceData:
    """Pairs: rows of a prompt, a chosen and a rejected response, as text or as messages."""

    path: str | None = "???"
    """JSONL or Parquet file, folder, or the name of a data set on the hub."""
    split: str = "train"
    """Part of a folder or of a named data set; a single file is read whole."""
    config: str | None = None
    """Configuration of a named data set."""
    limit: int | None = None
    """Read only the first rows, this many."""
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
        expect_at_least("PreferenceData.max_length", self.max_length, 2)
        expect_at_least("PreferenceData.limit", self.limit, 1)

    def load(self, tokenizer: PreTrainedTokenizerBase) -> PreferenceSet:
        """The pairs, checked and encoded; pairs with identical tokens are dropped (numerics D6)."""
        rows, report = parsed_rows(self.path, self.split, self.config, self.limit, self._parse)
        result = PreferenceSet(chosen=[], rejected=[], margins=[], pad_id=pad_id_of(tokenizer), report=report)
        chosen, rejected = _sides(rows, tokenizer)
        for row, *texts in zip(rows, chosen, rejected, strict=True):
            self._add(row, texts, result)
        finish(report)
        return result

    def _add(self, row: PreferenceRow, whole: list[Encoded], result: PreferenceSet) -> None:
        report = result.report
        fitted = within_limit(whole, self.max_length, self.overlong, report, row.where)
        if fitted is None:
            return
        chosen, rejected = fitted
        if chosen.tokens == rejected.tokens:
            report.drop("chosen and rejected are identical")
            return
        result.chosen.append(chosen)
        result.rejected.append(rejected)
        result.margins.append(row.margin)
        result.rows.append(row)
        report.keep(truncated=fitted is not whole)

    def _parse(self, row: Row) -> PreferenceRow:
        return preference_row(
            row,
            prompt_field=self.prompt_field,
            chosen_field=self.chosen_field,
            rejected_field=self.rejected_field,
            margin_field=self.margin_field,
            as_chat=self.as_chat,
        )


@dataclass(kw_only=True, slots=True)
class PromptData:
    """Prompts to be answered; the other fields of a row reach the reward function."""

    path: str | None = "???"
    """JSONL or Parquet file, folder, or the name of a data set on the hub."""
    split: str = "train"
    """Part of a folder or of a named data set; a single file is read whole."""
    config: str | None = None
    """Configuration of a named data set."""
    limit: int | None = None
    """Read only the first rows, this many."""
    prompt_field: str = "prompt"
    """Field with the prompt, a string or a list of messages."""
    as_chat: bool = False
    """Read a plain string prompt as one user message, so that the chat template applies."""
    max_prompt_length: int = 256
    """Most tokens in a prompt, the begin token included."""
    overlong: Overlong = Overlong.refuse
    """What happens to longer prompts: refuse or drop."""

    def __post_init__(self) -> None:
        expect_at_least("PromptData.max_prompt_length", self.max_prompt_length, 1)
        expect_at_least("PromptData.limit", self.limit, 1)
        if self.overlong is Overlong.truncate:
            raise ValueError(
                "PromptData.overlong must be refuse or drop, got truncate: a cut prompt is another"
            )

    def load(self, tokenizer: PreTrainedTokenizerBase) -> PromptSet:
        """The prompts, checked and encoded; what was left out is logged and reported."""
        rows, report = parsed_rows(self.path, self.split, self.config, self.limit, self._parse)
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


def parsed_rows(
    path: str | None, split: str, config: str | None, limit: int | None, parse: Callable[[Row], T]
) -> tuple[list[T], Report]:
    """The rows of a data set, checked, and the account of them that begins with it."""
    if path is None:
        raise ValueError("a data set was given path=null where one is needed")
    rows = read_rows(path, split, config=config)[:limit]
    return [parse(row) for row in rows], Report(source=path, read=len(rows))


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


def expect_at_least(name: str, value: int | None, least: int) -> None:
    """Refuse a number below ``least``; None is passed over."""
    if value is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
