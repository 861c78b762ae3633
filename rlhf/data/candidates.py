"""Rows with several right and several wrong responses, as RewardBench 2 has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf.data.encoding import Targets, encode_supervised
from rlhf.data.fitting import Overlong
from rlhf.data.loaded import SupervisedSet
from rlhf.data.rows import SupervisedRow, supervised_row
from rlhf.data.sets import finish, pad_id_of, within_limit
from rlhf.data.sources import Row
from rlhf.data.stored import StoredRows, expect_at_least


@dataclass(kw_only=True, slots=True)
class CandidateRow:
    """A prompt with right responses and wrong ones, at least one of each."""

    right: list[SupervisedRow]
    wrong: list[SupervisedRow]
    columns: dict[str, Any]
    where: str


@dataclass(kw_only=True, slots=True)
class CandidateSet:
    """Rows of candidates, all their texts encoded in one set."""

    texts: SupervisedSet
    """The right responses of the first row, its wrong ones, the right ones of the second row, …"""
    rows: list[CandidateRow]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(kw_only=True, slots=True)
class CandidateData(StoredRows):
    """Rows of a prompt, a list of right and a list of wrong responses."""

    prompt_field: str = "prompt"
    """Field with the prompt, a string or a list of messages."""
    chosen_field: str = "chosen"
    """Field with the right responses, a list; a single one may stand by itself."""
    rejected_field: str = "rejected"
    """Field with the wrong responses."""
    as_chat: bool = False
    """Read a plain string prompt as one user message, so that the chat template applies."""
    max_length: int = 512
    """Most tokens in a text, prompt and response together."""
    overlong: Overlong = Overlong.refuse
    """What happens to a row with a longer text: refuse, drop or truncate."""

    def __post_init__(self) -> None:
        StoredRows.__post_init__(self)
        expect_at_least(self, 2, "max_length")

    def load(self, tokenizer: PreTrainedTokenizerBase) -> CandidateSet:
        """The rows, checked and encoded; what was left out is logged and reported."""
        rows, report = self.parsed(self._parse)
        texts = SupervisedSet(encoded=[], pad_id=pad_id_of(tokenizer), report=report)
        result = CandidateSet(texts=texts, rows=[])
        candidates = [text for row in rows for text in (*row.right, *row.wrong)]
        encoded = iter(encode_supervised(candidates, tokenizer, targets=Targets.response))
        for row in rows:
            own = [*row.right, *row.wrong]
            whole = [next(encoded) for _ in own]
            fitted = within_limit(whole, self.max_length, self.overlong, report, row.where)
            if fitted is None:
                continue
            texts.encoded.extend(fitted)
            texts.rows.extend(own)
            result.rows.append(row)
            report.keep(truncated=fitted is not whole)
        finish(report)
        return result

    def _parse(self, row: Row) -> CandidateRow:
        return candidate_row(
            row,
            prompt_field=self.prompt_field,
            chosen_field=self.chosen_field,
            rejected_field=self.rejected_field,
            as_chat=self.as_chat,
        )


def candidate_row(
    row: Row,
    *,
    prompt_field: str = "prompt",
    chosen_field: str = "chosen",
    rejected_field: str = "rejected",
    as_chat: bool = False,
) -> CandidateRow:
    """The row's candidates.

    Raises:
        ValueError: a field is missing or of the wrong type, or a side has no response.
    """
    names = (prompt_field, chosen_field, rejected_field)
    columns = {name: value for name, value in row.values.items() if name not in names}
    sides = []
    for name in (chosen_field, rejected_field):
        given = row.values.get(name)
        responses = [given] if isinstance(given, str) else given
        if not isinstance(responses, list) or not responses:
            raise ValueError(f"{row.where}: field {name!r} must be a list of responses, at least one")
        one_by_one = [
            Row(
                values=columns | {prompt_field: row.values.get(prompt_field), name: response}, where=row.where
            )
            for response in responses
        ]
        sides.append(
            [
                supervised_row(one, prompt_field=prompt_field, response_field=name, as_chat=as_chat)
                for one in one_by_one
            ]
        )
    return CandidateRow(right=sides[0], wrong=sides[1], columns=columns, where=row.where)
