from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from rlhf.data.encoding import Targets, encode_prompts, encode_supervised, prompt_text
from rlhf.data.rows import Prompt, PromptRow, SupervisedRow

USER = {"role": "user", "content": "the sea ?"}
EARLIER = {"role": "assistant", "content": "fine"}


def demonstration(prompt: Prompt, response: str) -> SupervisedRow:
    return SupervisedRow(prompt=prompt, response=response, columns={}, where="f:1")


def question(prompt: Prompt) -> PromptRow:
    return PromptRow(prompt=prompt, columns={}, where="f:1")


def test_prompt_and_response_are_tokenised_apart(tokenizer: PreTrainedTokenizerFast) -> None:
    f, ilm = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("f", "ilm"))
    assert len(tokenizer("film", add_special_tokens=False)["input_ids"]) < len(
        f + ilm
    )  # joint text would merge
    encoded = encode_supervised([demonstration("f", "ilm")], tokenizer, targets=Targets.response)[0]
    assert encoded.tokens == [tokenizer.bos_token_id, *f, *ilm, tokenizer.eos_token_id]
    assert encoded.targets == [False] * (1 + len(f)) + [True] * (len(ilm) + 1)


def test_training_on_all_leaves_out_only_the_first_token(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = encode_supervised([demonstration("the sea", " is")], tokenizer, targets=Targets.all)[0]
    assert encoded.targets == [False] + [True] * (len(encoded.tokens) - 1)


def test_an_end_token_in_the_text_is_not_doubled(tokenizer: PreTrainedTokenizerFast) -> None:
    once = encode_supervised([demonstration("a", " film")], tokenizer, targets=Targets.response)[0]
    given = encode_supervised([demonstration("a", " film<eos>")], tokenizer, targets=Targets.response)[0]
    assert given == once
    assert once.tokens.count(tokenizer.eos_token_id) == 1


def test_the_begin_token_comes_exactly_once(tokenizer: PreTrainedTokenizerFast) -> None:
    bos = tokenizer.bos_token_id
    assert encode_prompts([question("")], tokenizer)[0] == [bos]
    for prompt in ("the sea", "<bos>the sea"):
        assert encode_prompts([question(prompt)], tokenizer)[0].count(bos) == 1
    assert (
        encode_supervised([demonstration("", "a")], tokenizer, targets=Targets.response)[0].tokens.count(bos)
        == 1
    )


def test_a_response_that_is_only_the_end_token_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=r"^f:1: the response '<eos>' has no token of its own$"):
        encode_supervised([demonstration("a", "<eos>")], tokenizer, targets=Targets.response)[0]


def test_an_empty_prompt_needs_a_begin_token(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.bos_token = None
    with pytest.raises(
        ValueError, match=r"^f:1: the prompt is empty and the tokenizer writes no begin token$"
    ):
        encode_prompts([question("")], tokenizer)[0]


def test_the_first_token_is_no_target_without_a_begin_token(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.bos_token = None
    encoded = encode_supervised([demonstration("", "a")], tokenizer, targets=Targets.response)[0]
    assert encoded.targets == [False, True]


def test_targets_choose_the_last_or_every_assistant_turn(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    row = demonstration([USER, EARLIER, USER], "dull")
    trained = {}
    for targets in Targets:
        encoded = encode_supervised([row], chat_tokenizer, targets=targets)[0]
        pairs = zip(encoded.tokens, encoded.targets, strict=True)
        trained[targets] = chat_tokenizer.decode([token for token, target in pairs if target])
    assert trained[Targets.response] == "dull<|im_end|>"
    assert trained[Targets.assistant] == "fine<|im_end|>dull<|im_end|>"
    assert trained[Targets.all] == chat_tokenizer.decode(encoded.tokens[1:])


def test_chat_prompts_end_with_the_header_of_the_answer(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    text = "<|im_start|>user\nthe sea ?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt_text(question([USER]), chat_tokenizer) == text
    assert chat_tokenizer.decode(encode_prompts([question([USER])], chat_tokenizer)[0]) == text


def test_a_tokenizer_without_end_token_cannot_encode(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end token"):
        encode_supervised([demonstration("a", "b")], tokenizer, targets=Targets.response)[0]


def test_flat_and_chat_rows_can_be_mixed(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [demonstration([USER], "fine"), demonstration("a", " film"), demonstration([USER], "dull")]
    together = encode_supervised(rows, chat_tokenizer, targets=Targets.response)
    assert together == [encode_supervised([row], chat_tokenizer, targets=Targets.response)[0] for row in rows]
