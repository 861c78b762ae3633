"""Pairs and labelled responses, in our shapes and those of other frameworks; what is wrong names its line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rlhf.data.encoding import Encoded
from rlhf.data.feedback import FeedbackData, mismatched
from rlhf.data.fitting import Overlong
from rlhf.data.loaded import LabelledSet, PreferenceSet

Write = Callable[..., str]
OTHER = {"prompt": "the sea", "response": " is dull", "label": False}
"""A second row: one alone cannot be mismatched."""


def labelled(path: str, tokenizer: Any, **fields: Any) -> LabelledSet:
    return FeedbackData(path=path, **fields).load_labelled(tokenizer)


def shown(tokenizer: Any, text: Encoded) -> tuple[str, str]:
    """What is given and what is a target."""
    first = text.targets.index(True)
    assert text.targets == [False] * first + [True] * (len(text.tokens) - first)
    return tokenizer.decode(text.tokens[:first]), tokenizer.decode(text.tokens[first:])


FLAT = [
    {"prompt": "the film", "response": " is fine", "label": True},
    {"prompt": "the film", "completion": " is fine", "label": True},  # TRL
    {"prompt": "the film", "completion": " is fine", "label": 1, "id": 7},
]
CHAT = [
    {
        "prompt": [{"role": "user", "content": "the film"}],
        "completion": [{"role": "assistant", "content": "fine"}],
        "label": True,
    },  # TRL
    {
        "messages": [{"role": "user", "content": "the film"}, {"role": "assistant", "content": "fine"}],
        "label": True,
    },  # LLaMA-Factory
    {"prompt": [{"role": "user", "content": "the film"}], "response": "fine", "label": True},
    {"prompt": "the film", "completion": [{"role": "assistant", "content": "fine"}], "label": True},
]


@pytest.mark.parametrize("row", FLAT)
def test_a_labelled_response_is_read_in_every_flat_shape(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: Write, row: dict[str, Any]
) -> None:
    found = labelled(write_jsonl(row, OTHER), tokenizer)
    assert found.desirable == [True, False]
    assert shown(tokenizer, found.texts[0])[1] == f" is fine{tokenizer.eos_token}"
    assert shown(tokenizer, found.texts[0])[0].endswith("the film")


@pytest.mark.parametrize("row", CHAT)
def test_a_labelled_response_is_read_in_every_chat_shape(
    chat_tokenizer: PreTrainedTokenizerFast, write_jsonl: Write, row: dict[str, Any]
) -> None:
    found = labelled(write_jsonl(row, OTHER), chat_tokenizer)
    given, target = shown(chat_tokenizer, found.texts[0])
    assert given == "<|im_start|>user\nthe film<|im_end|>\n<|im_start|>assistant\n"
    assert target.startswith("fine<|im_end|>")


def test_labels_of_other_names_are_read(tokenizer: PreTrainedTokenizerFast, write_jsonl: Write) -> None:
    rows = [{"q": "the film", "a": " is fine", "good": flag} for flag in (True, False)]
    found = labelled(write_jsonl(*rows), tokenizer, prompt_field="q", response_field="a", label_field="good")
    assert found.desirable == [True, False]


def test_a_pair_is_a_good_and_a_bad_response(tokenizer: PreTrainedTokenizerFast, write_jsonl: Write) -> None:
    found = labelled(write_jsonl({"prompt": "the", "chosen": " sea", "rejected": " film"}), tokenizer)
    ends = [shown(tokenizer, text)[1].removesuffix(tokenizer.eos_token) for text in found.texts]
    assert (ends, found.desirable) == ([" sea", " film"], [True, False])
    assert (found.report.read, found.report.kept) == (1, 2)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"prompt": "a", "response": "b"}, "no field 'label'; the row has 'prompt', 'response'"),
        ({"prompt": "a", "label": True}, "no field 'response'; the row has 'prompt', 'label'"),
        ({"response": "a", "label": True}, "no field 'prompt'; the row has 'response', 'label'"),
        (
            {"prompt": "a", "response": "b", "label": "good"},
            r"field 'label' is 'good', expected true \(good\)",
        ),
        ({"prompt": "a", "response": "b", "label": None}, "field 'label' is None, expected true"),
        ({"prompt": "a", "response": "b", "label": 2}, "field 'label' is 2, expected true"),
        ({"prompt": "a", "response": "b", "label": 1.0}, "field 'label' is 1.0, expected true"),
        ({"prompt": "a", "response": "", "label": True}, "field 'response' is empty"),
        ({"prompt": "a", "response": 3, "label": True}, "field 'response' is a number, expected"),
        ({"prompt": "a", "chosen": "b"}, "no field 'rejected'; the row has 'prompt', 'chosen'"),
        ({"messages": [{"role": "user", "content": "a"}], "label": True}, "ends with a turn of 'user'"),
        (["prompt"], "is a JSON list, every line must be an object"),
    ],
)
def test_a_malformed_labelled_row_names_file_and_line(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: Write, row: Any, complaint: str
) -> None:
    path = write_jsonl(OTHER, row)
    with pytest.raises(ValueError, match=complaint) as caught:
        labelled(path, tokenizer)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"prompt": "a", "response": "b", "label": True}, "no field 'chosen'; the row has"),
        ({"prompt": "a", "chosen": "b"}, "no field 'rejected'; the row has"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "field 'rejected' is empty"),
    ],
)
def test_a_malformed_pair_names_file_and_line(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: Write, row: Any, complaint: str
) -> None:
    path = write_jsonl({"prompt": "a", "chosen": "b", "rejected": "c"}, row)
    with pytest.raises(ValueError, match=complaint) as caught:
        FeedbackData(path=path).load_pairs(tokenizer)
    assert str(caught.value).startswith(f"{path}:2: ")


def test_pairs_are_those_of_a_reward_model(tokenizer: PreTrainedTokenizerFast, write_jsonl: Write) -> None:
    rows = [
        {"q": "the", "good": " sea", "bad": " film"},
        {"q": "the", "good": " sea", "bad": " sea"},  # identical
        {"q": "the", "good": " sea " * 30, "bad": " film"},
    ]
    data = FeedbackData(
        path=write_jsonl(*rows),
        prompt_field="q",
        chosen_field="good",
        rejected_field="bad",
        max_length=20,
        overlong=Overlong.drop,
    )
    found = data.load_pairs(tokenizer)
    assert isinstance(found, PreferenceSet)
    assert len(found) == 1
    assert shown(tokenizer, found.chosen[0])[1] == f" sea{tokenizer.eos_token}"
    assert sum(found.report.dropped.values()) == 2
    data.limit, data.overlong = 1, Overlong.refuse
    assert isinstance(data.load_pairs(tokenizer), PreferenceSet)


def test_nothing_of_a_response_within_the_limit_drops_the_row(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: Write
) -> None:
    """No row without a target reaches a loss, whose mean over its tokens would be 0/0."""
    long = "the sea is fine , the film is dull , and long"
    rows = [{"prompt": long, "response": " one", "label": True}, OTHER, OTHER]
    found = labelled(write_jsonl(*rows), tokenizer, max_length=9, overlong=Overlong.truncate)
    assert len(found) == 2
    assert found.report.dropped == {"nothing of the response within the limit": 1}
    assert all(any(text.targets) for text in found.texts + found.mismatched)
    pairs = [{"prompt": prompt, "chosen": " one", "rejected": " two"} for prompt in (long, "the sea")]
    data = FeedbackData(path=write_jsonl(*pairs), max_length=9, overlong=Overlong.truncate)
    kept = data.load_pairs(tokenizer)
    assert (len(kept), kept.report.dropped) == (1, found.report.dropped)


def test_a_prompt_is_mismatched_with_the_response_of_another_row() -> None:
    texts = [Encoded(tokens=[row, row, 50 + row], targets=[False, False, True]) for row in range(20)]
    found = mismatched(texts, 9, "rows")
    assert [text.tokens[:2] for text in found] == [text.tokens[:2] for text in texts]
    ends = [text.tokens[2] for text in found]
    assert sorted(ends) == [50 + row for row in range(20)]  # each response once
    assert all(end != 50 + row for row, end in enumerate(ends))
    neighbours = sum(abs(end - 50 - row) == 1 for row, end in enumerate(ends))
    assert neighbours < 8  # in the file's order all of them would be
    assert [text.tokens for text in mismatched(texts, 9, "rows")] == [text.tokens for text in found]


def test_a_mismatched_text_keeps_to_the_limit() -> None:
    texts = [
        Encoded(tokens=[1, 2, 3, 4], targets=[False, False, False, True]),
        Encoded(tokens=[5, 6, 7, 8], targets=[False, True, True, True]),
    ]
    found = mismatched(texts, 5, "rows")
    assert [text.tokens for text in found] == [[1, 2, 3, 6, 7], [5, 4]]
    assert [text.targets for text in found] == [[False] * 3 + [True] * 2, [False, True]]


def test_a_single_row_cannot_be_mismatched(tokenizer: PreTrainedTokenizerFast, write_jsonl: Write) -> None:
    with pytest.raises(ValueError, match=r"rows\.jsonl: has one labelled response, but two are needed"):
        labelled(write_jsonl(OTHER), tokenizer)


def test_batch_holds_text_mismatch_and_label(tokenizer: PreTrainedTokenizerFast, write_jsonl: Write) -> None:
    import torch

    found = labelled(write_jsonl(FLAT[0], OTHER, FLAT[0]), tokenizer)
    batch = found.batch(torch.tensor([1, 0]))
    assert batch.desirable.tolist() == [False, True]
    for number, row in enumerate((1, 0)):
        for side, texts in ((batch.text, found.texts), (batch.mismatched, found.mismatched)):
            real = side.attention_mask[number]
            assert side.tokens[number][real].tolist() == texts[row].tokens
            assert side.mask[number][real].tolist() == texts[row].targets
    assert found.lengths == [
        max(len(one.tokens), len(other.tokens))
        for one, other in zip(found.texts, found.mismatched, strict=True)
    ]


@pytest.mark.parametrize(("field", "least"), [("max_length", 2), ("limit", 1)])
def test_sizes_that_leave_nothing_are_refused(tmp_path: Path, field: str, least: int) -> None:
    with pytest.raises(ValueError, match=f"FeedbackData.{field} must be at least {least}, got 0"):
        FeedbackData(path=str(tmp_path), **{field: 0})
