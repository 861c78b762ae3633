from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from rlhf.data.candidates import CandidateData
from rlhf.data.fitting import Overlong

Write = Callable[..., str]
ROWS = [
    {"prompt": "the", "chosen": [" sea"], "rejected": [" film", " a"], "subset": "Math", "id": 3},
    {"prompt": "a", "chosen": [" b", " c"], "rejected": " x", "subset": "Ties", "id": "tied:1"},
]


def test_right_texts_stand_before_wrong_ones_row_by_row(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: Write
) -> None:
    data = CandidateData(path=write_jsonl(*ROWS)).load(tokenizer)
    assert [(len(row.right), len(row.wrong)) for row in data.rows] == [(1, 2), (2, 1)]
    assert [row.response for row in data.texts.rows] == [" sea", " film", " a", " b", " c", " x"]
    assert data.rows[1].columns == {"subset": "Ties", "id": "tied:1"}
    batch = data.texts.batch(torch.arange(6))
    assert len(batch) == len(data.texts) == 6
    assert batch.mask.sum(1).min() >= 2  # a response and its end token
    assert data.texts.columns(torch.tensor([0]))[0]["subset"] == "Math"


def test_a_row_with_a_long_text_is_dropped_whole(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: Write
) -> None:
    long = {"prompt": "a", "chosen": [" b"], "rejected": [" x", " the sea the sea the sea"]}
    path = write_jsonl(ROWS[0], long)
    whole = CandidateData(path=path).load(tokenizer)
    limit = max(whole.texts.lengths) - 1
    data = CandidateData(path=path, max_length=limit, overlong=Overlong.drop).load(tokenizer)
    assert len(data) == 1
    assert len(data.texts) == len(data.texts.rows) == 3
    with pytest.raises(ValueError, match=r":2: has \d+ tokens, the limit is"):
        CandidateData(path=path, max_length=limit).load(tokenizer)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": ["b"], "rejected": []}, "field 'rejected' must be a list of responses"),
        ({"prompt": "a", "rejected": ["b"]}, "field 'chosen' must be a list of responses, at least one"),
        ({"prompt": "a", "chosen": [""], "rejected": ["b"]}, "field 'chosen' is empty"),
        ({"chosen": ["c"], "rejected": ["b"]}, "field 'prompt' is null"),
    ],
)
def test_rows_without_candidates_are_refused(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: Write, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        CandidateData(path=write_jsonl(row)).load(tokenizer)
