"""Bugs of other frameworks in masks, end tokens and padding of data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlhf.data.encoding import Targets, encode_supervised
from rlhf.data.fitting import Overlong
from rlhf.data.rows import Prompt, SupervisedRow
from rlhf.data.sets import PreferenceData, PromptData, SupervisedData
from rlhf.data.tokenizers import load_tokenizer, train_bpe

TEXTS = ["a fine little film", "a dull film , and a long one"]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' + m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def rows(tmp_path: Path, *values: object) -> str:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(file)


def chat_tokenizer() -> PreTrainedTokenizerBase:
    """ChatML, whose end of turn is the end token."""
    tokenizer = train_bpe(TEXTS, 300)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def test_end_token_is_trained_when_it_is_also_the_pad(tmp_path: Path) -> None:
    tokenizer = train_bpe(TEXTS, 300)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "shared")
    loaded = load_tokenizer(str(tmp_path / "shared"))
    assert loaded.pad_token_id != loaded.eos_token_id
    path = rows(
        tmp_path, {"prompt": "a", "response": " film"}, {"prompt": "a", "response": " dull , long film"}
    )
    for either in (loaded, tokenizer):  # even with a shared pad the mask does not come from ids
        batch = SupervisedData(path=path).load(either).batch(torch.arange(2))
        last = batch.attention_mask.sum(1) - 1
        row = torch.arange(2)
        assert (batch.tokens[row, last] == either.eos_token_id).all()
        assert batch.mask[row, last].all()
        assert batch.mask.sum().item() == sum(
            len(either(f"{t}<eos>", add_special_tokens=False)["input_ids"])
            for t in (" film", " dull , long film")
        )


def test_every_supervised_target_ends_with_an_end_token(tmp_path: Path) -> None:
    flat, chat = train_bpe(TEXTS, 300), chat_tokenizer()
    turns = [{"role": "user", "content": "a film"}, {"role": "assistant", "content": "dull"}]
    cases = [
        (flat, {"prompt": "a", "response": " film"}),
        (flat, {"prompt": "", "response": "a film<eos>"}),
        (chat, {"prompt": "a", "response": " film"}),
        (chat, {"messages": turns + turns}),
        (chat, {"prompt": turns[:1], "response": "dull"}),
    ]
    for tokenizer, row in cases:
        encoded = SupervisedData(path=rows(tmp_path, row)).load(tokenizer).encoded[0]
        assert encoded.tokens[-1] == tokenizer.eos_token_id
        assert encoded.targets[-1]


def test_chat_template_gets_no_second_end_token() -> None:
    tokenizer = chat_tokenizer()
    row = SupervisedRow(
        prompt=[{"role": "user", "content": "a film"}], response="dull", columns={}, where="f:1"
    )
    tokens = encode_supervised([row], tokenizer, targets=Targets.response)[0].tokens
    assert tokens.count(tokenizer.eos_token_id) == 2  # one for each turn
    assert tokens[-2] != tokenizer.eos_token_id


def test_begin_token_equal_to_pad_is_real(tmp_path: Path) -> None:
    tokenizer = train_bpe(TEXTS, 300)
    tokenizer.pad_token = tokenizer.bos_token
    path = rows(tmp_path, {"prompt": "a", "response": "b", "chosen": "b", "rejected": "c"})
    index = torch.tensor([0])
    prompts = PromptData(path=path).load(tokenizer).batch(index)
    assert prompts.tokens[0, 0] == tokenizer.pad_token_id
    assert prompts.mask.all()
    assert SupervisedData(path=path).load(tokenizer).batch(index).attention_mask.all()
    assert PreferenceData(path=path).load(tokenizer).batch(index).chosen.attention_mask.all()


@pytest.mark.parametrize("max_length", [3, 5])
def test_truncated_text_gets_no_false_end(tmp_path: Path, max_length: int) -> None:
    tokenizer = train_bpe(TEXTS, 300)
    row = {"prompt": "x", "response": "zzzzzz", "chosen": "zzzzzz", "rejected": "qqqqqq"}
    path, index = rows(tmp_path, row), torch.tensor([0])
    cut = {"path": path, "max_length": max_length, "overlong": Overlong.truncate}
    batches = [SupervisedData(**cut).load(tokenizer).batch(index)]  # type: ignore[arg-type]
    pair = PreferenceData(**cut).load(tokenizer).batch(index)  # type: ignore[arg-type]
    for batch in (*batches, pair.chosen, pair.rejected):
        assert batch.tokens.shape == (1, max_length)
        assert not (batch.tokens == tokenizer.eos_token_id).any()
        assert batch.mask[0, -1]


def test_turn_mask_comes_from_one_tokenisation() -> None:
    vocabulary = {token: number for number, token in enumerate(["x", "xx", "u", "a", "</s>"])}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[("x", "x")]))
    bpe.pre_tokenizer = pre_tokenizers.Split("</s>", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>", pad_token="u")
    end = "{% if m['role'] == 'assistant' %}</s>{% endif %}"
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}" + end + "{% endfor %}"
    # system ends and user begins with x: apart these are two tokens, in the conversation one, xx
    roles = [("system", "ux"), ("user", "xu"), ("assistant", "au"), ("user", "ux")]
    prompt: Prompt = [{"role": role, "content": text} for role, text in roles]
    row = SupervisedRow(prompt=prompt, response="aa", columns={}, where="f:1")
    encoded = encode_supervised([row], tokenizer, targets=Targets.assistant)[0]
    pieces = tokenizer.convert_ids_to_tokens(encoded.tokens)
    assert " ".join(pieces) == "u xx u a u </s> u x a a </s>"
    assert [int(target) for target in encoded.targets] == [0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 1]
