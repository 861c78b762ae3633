"""Judgements as a data set: pairs, rankings and labels, encoded for a reward model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from transformers import PreTrainedTokenizerBase

from rlhf.data.comparison_rows import ComparisonFields, ComparisonRow, comparison_rows, without_ties
from rlhf.data.encoding import Encoded, Targets, encode_supervised
from rlhf.data.fitting import Overlong
from rlhf.data.loaded import ComparisonSet
from rlhf.data.rows import SupervisedRow
from rlhf.data.sets import finish, pad_id_of, within_limit
from rlhf.data.stored import StoredRows, expect_at_least

log = logging.getLogger(__name__)


class Ties(Enum):
    """What a tie is taken for."""

    half = "half"  # a comparison with probability 1/2
    drop = "drop"  # none: left out and counted


@dataclass(kw_only=True, slots=True)
class ComparisonData(StoredRows):
    """Rows of judgements: pairs, rankings, answered queries, labels, as their fields say."""

    prompt_field: str = "prompt"
    """Field with the prompt; may be absent where the responses of a pair are conversations that begin with
    it."""
    chosen_field: str = "chosen"
    """Field with the better response of a pair."""
    rejected_field: str = "rejected"
    """Field with the worse response of a pair."""
    margin_field: str = "margin"
    """Field with the least difference of the two scores of a pair; 0 where it is absent."""
    probability_field: str = "probability"
    """Field with the probability that the chosen response is the better one; 1 where it is absent, 0.5 is a
    tie."""
    responses_field: str = "responses"
    """Field with the responses of a ranking."""
    ranks_field: str = "ranks"
    """Field with a rank for each of them: 1 the best, equal ones tied, null not ranked."""
    response_field: str = "response"
    """Field with a single labelled response; those to one prompt are compared, good against bad."""
    label_field: str = "label"
    """Field with its label, true for good; or with the label of a context that has no response."""
    label_texts: list[str] = field(default_factory=list)
    """Of labelled contexts: the words that follow one whose label is true, and those for false."""
    ties: Ties = Ties.half
    """What a tie is taken for: half, a comparison with probability 1/2, or drop, none."""
    as_chat: bool = False
    """Read a plain string prompt as one user message, so that the chat template applies."""
    max_length: int = 512
    """Most tokens in a text, prompt and response together."""
    overlong: Overlong = Overlong.refuse
    """What happens to a row with a longer text: refuse, drop or truncate."""

    def __post_init__(self) -> None:
        StoredRows.__post_init__(self)
        expect_at_least(self, 2, "max_length")
        if self.label_texts and (len(self.label_texts) != 2 or self.label_texts[0] == self.label_texts[1]):
            raise ValueError(
                f"ComparisonData.label_texts must be two different texts, got {list(self.label_texts)}"
            )

    def load(self, tokenizer: PreTrainedTokenizerBase) -> ComparisonSet:
        """The judgements, checked and encoded; prompts without any are dropped and counted (numerics D23)."""
        stored, report = self.parsed(lambda row: row)
        rows = comparison_rows(stored, self._names())
        result = ComparisonSet(texts=[], judgements=[], pad_id=pad_id_of(tokenizer), report=report)
        texts = iter(_encoded(rows, tokenizer))
        for row in rows:
            self._add(row, [next(texts) for _ in row.responses], result)
        finish(report)
        log.info("%s: %d comparisons", self.path, sum(map(len, result.judgements)))
        return result

    def _add(self, row: ComparisonRow, whole: list[Encoded], result: ComparisonSet) -> None:
        report = result.report
        judgements = without_ties(row.judgements) if self.ties is Ties.drop else row.judgements
        if not judgements:
            report.drop("no two responses can be compared")
            return
        fitted = within_limit(whole, self.max_length, self.overlong, report, row.where)
        if fitted is None:
            return
        kept = [one for one in judgements if fitted[one.first].tokens != fitted[one.second].tokens]
        if not kept:
            report.drop("chosen and rejected are identical")
            return
        result.add(list(fitted), kept)
        report.keep(truncated=fitted is not whole)

    def _names(self) -> ComparisonFields:
        return ComparisonFields(
            prompt=self.prompt_field,
            chosen=self.chosen_field,
            rejected=self.rejected_field,
            margin=self.margin_field,
            probability=self.probability_field,
            responses=self.responses_field,
            ranks=self.ranks_field,
            response=self.response_field,
            label=self.label_field,
            label_texts=self.label_texts,
            as_chat=self.as_chat,
        )


def _encoded(rows: Sequence[ComparisonRow], tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    demonstrations = [
        SupervisedRow(prompt=row.prompt, response=response, columns={}, where=row.where)
        for row in rows
        for response in row.responses
    ]
    return encode_supervised(demonstrations, tokenizer, targets=Targets.response)
