"""What `rlhf preference` reads: pairs of responses, or single ones that somebody called good or bad."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rlhf.data.encoding import Encoded, Targets, encode_supervised
from rlhf.data.fitting import Overlong
from rlhf.data.loaded import LabelledSet, PreferenceSet
from rlhf.data.order import epoch_order
from rlhf.data.rows import (
    COMPLETION,
    LabelledRow,
    PreferenceRow,
    SupervisedRow,
    both_sides,
    labelled_row,
)
from rlhf.data.sets import decided, finish, pad_id_of, pair_set, within_limit, won_pair
from rlhf.data.sources import Row
from rlhf.data.stored import StoredRows, expect_at_least
from rlhf.data.verdicts import response_fields

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class FeedbackData(StoredRows):
    """Pairs, or rows of a prompt, a response and a label; the loss says which."""

    prompt_field: str = "prompt"
    """Field with the prompt; may be absent where the responses are conversations that begin with it."""
    chosen_field: str = "chosen"
    """Field with the better response of a pair."""
    rejected_field: str = "rejected"
    """Field with the worse response of a pair."""
    response_field: str = "response"
    """Field with the response of a labelled row; one called "completion" is found too."""
    label_field: str = "label"
    """Field with its label, true for good. For kto a pair without one is a good and a bad response."""
    as_chat: bool = False
    """Read a plain string prompt as one user message, so that the chat template applies."""
    max_length: int = 512
    """Most tokens in a text, prompt and response together."""
    overlong: Overlong = Overlong.refuse
    """What happens to a pair or row with a longer text: refuse, drop or truncate."""

    def __post_init__(self) -> None:
        StoredRows.__post_init__(self)
        expect_at_least(self, 2, "max_length")

    def load_pairs(self, tokenizer: PreTrainedTokenizerBase) -> PreferenceSet:
        """The pairs, checked and encoded; pairs with identical tokens are dropped (numerics D6)."""
        return pair_set(
            *self.parsed(self._pair), tokenizer, max_length=self.max_length, overlong=self.overlong
        )

    def load_labelled(self, tokenizer: PreTrainedTokenizerBase) -> LabelledSet:
        """The labelled responses, checked and encoded, each prompt also beside another row's response."""
        found, report = self.parsed(self._labelled)
        rows = [row for of_one in decided(found, report) for row in of_one]
        texts: list[Encoded] = []
        desirable = []
        for row, whole in zip(rows, _encoded(rows, tokenizer), strict=True):
            fitted = within_limit([whole], self.max_length, self.overlong, report, row.where)
            if fitted is not None:
                texts.extend(fitted)
                desirable.append(row.desirable)
                report.keep(truncated=fitted[0] is not whole)
        finish(report)
        log.info("%s: %d responses, %d of them good", self.path, len(texts), sum(desirable))
        return LabelledSet(
            texts=texts,
            mismatched=mismatched(texts, self.max_length, str(self.path)),
            desirable=desirable,
            pad_id=pad_id_of(tokenizer),
            report=report,
        )

    def _pair(self, row: Row) -> PreferenceRow | None:
        return won_pair(
            row,
            prompt_field=self.prompt_field,
            sides=(self.chosen_field, self.rejected_field),
            as_chat=self.as_chat,
        )

    def _labelled(self, row: Row) -> list[LabelledRow] | None:
        """The labelled response; of a pair, which has no label, both."""
        if self._holds_pair(row):
            pair = self._pair(row)
            return None if pair is None else both_sides(pair)
        single = labelled_row(
            row,
            prompt_field=self.prompt_field,
            response_field=self.response_field,
            label_field=self.label_field,
            as_chat=self.as_chat,
        )
        return [single]

    def _holds_pair(self, row: Row) -> bool:
        if self.chosen_field in row.values:
            return self.label_field not in row.values
        single = (self.response_field, COMPLETION, "messages")
        return response_fields(row) is not None and all(row.values.get(name) is None for name in single)


def _encoded(rows: Sequence[LabelledRow], tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    demonstrations = [
        SupervisedRow(prompt=row.prompt, response=row.response, columns={}, where=row.where) for row in rows
    ]
    return encode_supervised(demonstrations, tokenizer, targets=Targets.response)


def mismatched(texts: Sequence[Encoded], limit: int, source: str) -> list[Encoded]:
    """Each text's prompt with the response of another text, its end cut off at ``limit`` tokens.

    The others are the next ones on a fixed random cycle through all texts, so that neither pairs nor rows
    sorted by prompt meet themselves.

    Raises:
        ValueError: there is one text only.
    """
    if len(texts) < 2:
        raise ValueError(f"{source}: has one labelled response, but two are needed to mismatch them")
    cycle: list[int] = epoch_order(len(texts), 0, 0).tolist()
    found = dict(zip(cycle, [*cycle[1:], cycle[0]], strict=True))
    return [_joined(text, texts[found[row]], limit) for row, text in enumerate(texts)]


def _joined(asked: Encoded, answered: Encoded, limit: int) -> Encoded:
    prompt, other = asked.targets.index(True), answered.targets.index(True)
    tokens = asked.tokens[:prompt] + answered.tokens[other:]
    targets = asked.targets[:prompt] + answered.targets[other:]
    return Encoded(tokens=tokens[:limit], targets=targets[:limit])
