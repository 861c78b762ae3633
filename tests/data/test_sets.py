from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from rlhf.data.encoding import Targets
from rlhf.data.fitting import Overlong
from rlhf.data.sets import PreferenceData, PromptData, SupervisedData

Write = Callable[..., str]

UNEVEN = [  # with begin and end token 4, 7 and 7 tokens
    {"prompt": "x", "response": "y"},
    {"prompt": "x", "response": "zzzz"},
    {"prompt": "zzzz", "response": "y"},
]


def test_demonstrations_become_batches(tokenizer: PreTrainedTokenizerFast, write_jsonl: Write) -> None:
    path = write_jsonl({"q": "a", "a": " film"}, {"q": "a", "a": " long film"})
    data = SupervisedData(path=path, prompt_field="q", response_field="a").load(tokenizer)
    batch = data.batch(torch.tensor([1, 0]))
    assert len(data) == 2
    assert tokenizer.decode(batch.tokens[0]) == "<bos>a long film<eos>"
    assert tokenizer.decode(batch.tokens[0][batch.mask[0]]) == " long film<eos>"
    assert tokenizer.decode(batch.tokens[1][batch.attention_mask[1]]) == "<bos>a film<eos>"


def test_targets_reach_the_encoding(tokenizer: PreTrainedTokenizerFast, write_jsonl: Write) -> None:
    path = write_jsonl({"prompt": "a", "response": "b"})
    assert SupervisedData(path=path, targets=Targets.all).load(tokenizer).encoded[0].targets == [
        False,
        True,
        True,
        True,
    ]


def test_limit_reads_the_first_rows(tokenizer: PreTrainedTokenizerFast, write_jsonl: Write) -> None:
    path = write_jsonl(*({"prompt": letter} for letter in "abc"))
    prompts = PromptData(path=path, limit=2).load(tokenizer)
    assert prompts.texts(torch.arange(len(prompts))) == ["a", "b"]
    assert prompts.report.read == 2


def test_overlong_rows_are_dropped_and_counted(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: Write
) -> None:
    data = SupervisedData(path=write_jsonl(*UNEVEN), max_length=4, overlong=Overlong.drop).load(tokenizer)
    assert len(data) == 1
    assert str(data.report).endswith("3 rows read, 1 kept, 0 truncated, 2 dropped (longer than 4 tokens)")


def test_truncated_rows_are_counted_and_need_a_response(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: Write
) -> None:
    data = SupervisedData(path=write_jsonl(*UNEVEN), max_length=4, overlong=Overlong.truncate).load(tokenizer)
    assert [tokenizer.decode(row.tokens) for row in data.encoded] == ["<bos>xy<eos>", "<bos>xzz"]
    assert (data.report.kept, data.report.truncated) == (2, 1)
    assert data.report.dropped == {"nothing of the response within the limit": 1}


def test_an_overlong_row_is_refused_by_name(tokenizer: PreTrainedTokenizerFast, write_jsonl: Write) -> None:
    path = write_jsonl({"prompt": "x", "response": "y"}, {"prompt": "x", "response": "zzzz"})
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: has 7 tokens, the limit is 4"):
        SupervisedData(path=path, max_length=4).load(tokenizer)


def test_identical_pairs_are_dropped_and_counted(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: Write
) -> None:
    rows = [{"prompt": "p", "chosen": "x", "rejected": y} for y in ("y", "x")]
    data = PreferenceData(path=write_jsonl(*rows)).load(tokenizer)
    assert (len(data), data.report.dropped) == (1, {"chosen and rejected are identical": 1})


def test_pairs_that_truncation_makes_identical_are_dropped(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: Write
) -> None:
    rows = [
        {"prompt": "p", "chosen": "xyz", "rejected": "xyq"},
        {"prompt": "p", "chosen": "q", "rejected": "xyz"},
    ]
    data = PreferenceData(path=write_jsonl(*rows), max_length=4, overlong=Overlong.truncate).load(tokenizer)
    assert (data.report.kept, data.report.truncated) == (1, 1)
    batch = data.batch(torch.tensor([0]))
    assert tokenizer.decode(batch.chosen.tokens[0]) == "<bos>pq<eos>"
    assert tokenizer.decode(batch.rejected.tokens[0]) == "<bos>pxy"


def test_chat_pairs_train_only_the_last_answer(
    chat_tokenizer: PreTrainedTokenizerFast, write_jsonl: Write
) -> None:
    prompt = [{"role": role, "content": "fine"} for role in ("user", "assistant", "user")]
    answers = [[*prompt, {"role": "assistant", "content": text}] for text in ("good", "bad")]
    path = write_jsonl({"chosen": answers[0], "rejected": answers[1], "margin": 0.5})
    batch = PreferenceData(path=path).load(chat_tokenizer).batch(torch.tensor([0]))
    assert chat_tokenizer.decode(batch.chosen.tokens[batch.chosen.mask]) == "good<|im_end|>"
    assert chat_tokenizer.decode(batch.rejected.tokens[batch.rejected.mask]) == "bad<|im_end|>"
    assert batch.margin.tolist() == [0.5]


def test_prompts_keep_texts_and_columns(chat_tokenizer: PreTrainedTokenizerFast, write_jsonl: Write) -> None:
    path = write_jsonl({"prompt": "hi", "answer": 4})
    prompts = PromptData(path=path, as_chat=True).load(chat_tokenizer)
    batch = prompts.batch(torch.tensor([0]), samples=2)
    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert prompts.texts(batch.index) == [text, text]
    assert [chat_tokenizer.decode(row) for row in batch.tokens] == [text, text]
    assert prompts.columns(batch.index) == [{"answer": 4}] * 2


def test_a_long_prompt_is_refused_or_dropped(tokenizer: PreTrainedTokenizerFast, write_jsonl: Write) -> None:
    path = write_jsonl({"prompt": "x"}, {"prompt": "xyzxyz"})
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: has 7 tokens, the limit is 4"):
        PromptData(path=path, max_prompt_length=4).load(tokenizer)
    kept = PromptData(path=path, max_prompt_length=4, overlong=Overlong.drop).load(tokenizer)
    assert (len(kept), kept.report.dropped) == (1, {"longer than 4 tokens": 1})


def test_nothing_left_is_an_error(tokenizer: PreTrainedTokenizerFast, write_jsonl: Write) -> None:
    path = write_jsonl({"prompt": "p", "chosen": "x", "rejected": "x"})
    with pytest.raises(ValueError, match=r"no row is left: .*rows\.jsonl: 1 rows read, 0 kept"):
        PreferenceData(path=path).load(tokenizer)


def test_a_tokenizer_without_pad_is_refused(tokenizer: PreTrainedTokenizerFast, write_jsonl: Write) -> None:
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="the tokenizer has no PAD"):
        PromptData(path=write_jsonl({"prompt": "p"})).load(tokenizer)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"SupervisedData\.max_length must be at least 2, got 1"):
        SupervisedData(max_length=1)
    with pytest.raises(ValueError, match=r"PreferenceData\.limit must be at least 1, got 0"):
        PreferenceData(limit=0)
    with pytest.raises(ValueError, match=r"PromptData\.overlong must be refuse or drop, got truncate"):
        PromptData(overlong=Overlong.truncate)


def test_a_path_that_is_null_is_refused_on_loading(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="path=null where one is needed"):
        PromptData(path=None).load(tokenizer)
