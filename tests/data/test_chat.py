from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from rlhf.data.chat import encode_conversation, render

TURNS = [
    {"role": "user", "content": "the sea ?"},
    {"role": "assistant", "content": "the sea is fine"},
    {"role": "user", "content": "a film ?"},
    {"role": "assistant", "content": "a dull film"},
]


def marked(tokenizer: PreTrainedTokenizerFast, trained: list[int]) -> tuple[str, list[str]]:
    """The decoded sequence, and each run of marked tokens decoded."""
    tokens, marks = encode_conversation(TURNS, trained, tokenizer, "f:1")
    runs: list[list[int]] = []
    previous = False
    for token, mark in zip(tokens, marks, strict=True):
        if mark and not previous:
            runs.append([])
        if mark:
            runs[-1].append(token)
        previous = mark
    return tokenizer.decode(tokens), [tokenizer.decode(run) for run in runs]


def test_every_trained_turn_is_marked_with_its_end_token(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    text, runs = marked(chat_tokenizer, [1, 3])
    assert runs == ["the sea is fine<|im_end|>", "a dull film<|im_end|>"]
    assert text == (
        "<|im_start|>user\nthe sea ?<|im_end|>\n<|im_start|>assistant\nthe sea is fine<|im_end|>\n"
        "<|im_start|>user\na film ?<|im_end|>\n<|im_start|>assistant\na dull film<|im_end|>"
    )


def test_only_the_turns_asked_for_are_marked(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    assert marked(chat_tokenizer, [3])[1] == ["a dull film<|im_end|>"]


def test_an_end_token_is_added_where_the_template_writes_none(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    assert marked(tokenizer, [3])[1] == [" a dull film\n<eos>"]
    assert marked(tokenizer, [1, 3])[1] == [" the sea is fine\n", " a dull film\n<eos>"]


def test_the_generation_prompt_is_the_prefix_that_was_trained(
    chat_tokenizer: PreTrainedTokenizerFast,
) -> None:
    prompt = chat_tokenizer(render(TURNS[:3], chat_tokenizer, "f:1", header=True), add_special_tokens=False)
    tokens, marks = encode_conversation(TURNS, [3], chat_tokenizer, "f:1")
    assert tokens[: marks.index(True)] == prompt["input_ids"]


def test_a_header_that_merges_with_the_answer_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = (  # the header's last blank and the first word are one token
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<eos>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    with pytest.raises(ValueError, match=r"^f:1: message 3 is joined with the text before it into one token"):
        encode_conversation(TURNS, [3], tokenizer, "f:1")


def test_newlines_that_are_tokenised_otherwise_alone_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_tokens(
        ["\n\n"]
    )  # alone the header ends in one token, before a newline of the answer it may not
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + '\n' + m['content'] + '<eos>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}"
    )
    turns = [TURNS[0], {"role": "assistant", "content": "\nfine"}]
    with pytest.raises(ValueError, match=r"^f:1: message 1 is joined with the text before it"):
        encode_conversation(turns, [1], tokenizer, "f:1")


def test_a_turn_that_merges_with_the_next_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_tokens([".|"])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '|' + m['role'] + ':' + m['content'] + '.' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '|assistant:' }}{% endif %}"
    )
    with pytest.raises(ValueError, match=r"^f:1: message 1 is joined with the next one into one token"):
        encode_conversation(TURNS, [1, 3], tokenizer, "f:1")


def test_a_template_that_rewrites_earlier_turns_is_refused(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    chat_tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}|"
        "{{ m['content'] if loop.last or m['role'] == 'user' else 'gone' }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant|{% endif %}"
    )
    with pytest.raises(ValueError, match=r"^f:1: the chat template writes the first 2 messages otherwise"):
        encode_conversation(TURNS, [1, 3], chat_tokenizer, "f:1")


def test_a_response_that_the_template_removes_is_refused(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    chat_tokenizer.chat_template = chat_tokenizer.chat_template.replace(
        "m['content']", "m['content'].strip()"
    )
    turns = [TURNS[0], {"role": "assistant", "content": " \n"}]
    with pytest.raises(ValueError, match=r"^f:1: the response is empty after the chat template$"):
        encode_conversation(turns, [1], chat_tokenizer, "f:1")


def test_a_template_that_raises_is_one_line(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    chat_tokenizer.chat_template = "{{ raise_exception('roles must\nalternate') }}"
    with pytest.raises(ValueError, match=r"^f:1: the chat template refuses the messages: roles must$"):
        render(TURNS, chat_tokenizer, "f:1", header=False)


def test_chat_without_a_template_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(
        ValueError, match=r"^f:1: chat messages need a chat template, the tokenizer has none$"
    ):
        render(TURNS, tokenizer, "f:1", header=True)
