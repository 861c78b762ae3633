from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from rlhf.data.tokenizers import (
    begin_ids,
    end_ids,
    give_own_pad,
    load_tokenizer,
    train_bpe,
)

TEXTS = ["a fine little film", "a dull film , and a long one"] * 3


def words(*, pad: str | None = None, vocabulary: tuple[str, ...] = ("a", "</s>")) -> PreTrainedTokenizerFast:
    table = {word: number for number, word in enumerate(vocabulary)}
    word_level = Tokenizer(models.WordLevel(table, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=word_level, eos_token="</s>", pad_token=pad)


def test_any_text_decodes_to_itself() -> None:
    tokenizer = train_bpe(TEXTS, 280)
    for text in ["", " a  fine film ", "naïve 日本\n\tx", "🙂 don't , stop .", "UPPER"]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert (
            tokenizer.decode(
                [*tokenizer(text)["input_ids"], tokenizer.eos_token_id], skip_special_tokens=True
            )
            == text
        )


def test_begin_end_and_pad_are_three_tokens_and_empty_text_is_the_begin_token() -> None:
    tokenizer = train_bpe(TEXTS, 280)
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert tokenizer("")["input_ids"] == [tokenizer.bos_token_id]
    assert len(tokenizer) == 280


def test_the_same_texts_give_the_same_tokenizer() -> None:
    assert train_bpe(TEXTS, 290).get_vocab() == train_bpe(TEXTS, 290).get_vocab()


@pytest.mark.parametrize("config", [None, LlamaConfig(), GPT2Config()], ids=["alone", "llama", "gpt2"])
def test_a_saved_tokenizer_is_loaded_by_transformers_alone(
    tmp_path: Path, config: LlamaConfig | None
) -> None:
    tokenizer = train_bpe(TEXTS, 280, tmp_path)
    if config is not None:
        config.save_pretrained(tmp_path)  # the model's config must not choose another tokenizer class
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "a  fine film , naïve"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (loaded.pad_token_id, loaded.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size must be at least 259, got 258"):
        train_bpe(TEXTS, 258)


def test_few_texts_give_fewer_tokens_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = train_bpe(["ab"], 300)
    assert len(tokenizer) == 260  # 256 bytes, 3 special tokens, one pair
    assert "260 tokens, fewer than vocab_size = 300" in caplog.text


@pytest.mark.parametrize("pad", [None, "</s>"], ids=["missing", "shared"])
def test_a_missing_or_shared_pad_is_replaced_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pad: str | None
) -> None:
    words(pad=pad).save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO):
        tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.pad_token, tokenizer.pad_token_id, tokenizer.eos_token_id) == ("<pad>", 2, 1)
    assert len(caplog.records) == 1


def test_a_good_pad_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words(pad="a").save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO):
        assert load_tokenizer(str(tmp_path)).pad_token_id == 0
    assert not caplog.records


def test_the_new_pad_takes_a_name_that_is_free() -> None:
    tokenizer = words(vocabulary=("<pad>", "</s>", "a"))
    give_own_pad(tokenizer)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<pad_1>", 3)


def test_a_pad_that_the_generation_config_ends_on_is_replaced() -> None:
    tokenizer = words(pad="a")
    give_own_pad(tokenizer, eos_ids=[0])
    assert tokenizer.pad_token_id == 2


def test_a_pad_survives_saving(tmp_path: Path) -> None:
    tokenizer = words()
    give_own_pad(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).pad_token_id == tokenizer.pad_token_id == 2


def test_a_folder_without_tokenizer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{tmp_path}: no tokenizer can be loaded: ") as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_end_token_is_refused(tmp_path: Path) -> None:
    tokenizer = words()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no end token"):
        load_tokenizer(str(tmp_path))


def test_end_tokens_are_those_of_tokenizer_and_generation_config() -> None:
    tokenizer = train_bpe(TEXTS, 280)
    assert end_ids(tokenizer) == (2,)
    assert end_ids(tokenizer, 7) == (2, 7)
    assert end_ids(tokenizer, [9, 2, 7]) == (2, 7, 9)
    with pytest.raises(ValueError, match="token 0 is PAD and ends responses"):
        end_ids(tokenizer, [0])
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither the tokenizer nor the generation config has an end token"):
        end_ids(tokenizer)


def test_begin_ids_are_what_the_tokenizer_writes() -> None:
    assert begin_ids(train_bpe(TEXTS, 280)) == [1]
    assert begin_ids(words()) == []
