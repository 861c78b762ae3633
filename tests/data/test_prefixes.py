from collections.abc import Callable

import torch
from transformers import PreTrainedTokenizerFast

from rlhf.data.prefixes import prefixed, with_prefix
from rlhf.data.sets import PromptData, SupervisedData

Write = Callable[..., str]
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]


def test_a_text_is_put_behind_the_prefix() -> None:
    assert prefixed("the sea", "<good> ") == "<good> the sea"


def test_of_a_conversation_the_last_turn_is_and_the_given_one_stays() -> None:
    asked = prefixed(TURNS, "<good> ")
    assert asked == [TURNS[0], {"role": "user", "content": "<good> hi"}]
    assert TURNS[1]["content"] == "hi"


def test_sampling_reads_what_training_on_the_prefixed_prompt_read(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: Write
) -> None:
    bare = PromptData(path=write_jsonl({"prompt": "the sea", "answer": 4}, {"prompt": ""})).load(tokenizer)
    asked = with_prefix(bare, "<good> ", tokenizer)
    rows = [{"prompt": f"<good> {text}", "response": " b"} for text in ("the sea", "")]
    trained = SupervisedData(path=write_jsonl(*rows)).load(tokenizer).encoded
    assert asked.prompts == [row.tokens[: row.targets.index(True)] for row in trained]
    assert asked.prompts != bare.prompts


def test_texts_and_columns_stay_those_of_the_bare_prompts(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: Write
) -> None:
    asked = with_prefix(
        PromptData(path=write_jsonl({"prompt": "the sea", "answer": 4})).load(tokenizer), "<good> ", tokenizer
    )
    row = torch.tensor([0])
    assert (asked.texts(row), asked.columns(row), asked.given) == (["the sea"], [{"answer": 4}], ["the sea"])


def test_a_conversation_is_rendered_with_the_prefix_inside(
    chat_tokenizer: PreTrainedTokenizerFast, write_jsonl: Write
) -> None:
    bare = PromptData(path=write_jsonl({"prompt": TURNS})).load(chat_tokenizer)
    asked = with_prefix(bare, "<good> ", chat_tokenizer)
    told = PromptData(path=write_jsonl({"prompt": prefixed(TURNS, "<good> ")})).load(chat_tokenizer)
    assert asked.prompts == told.prompts
    assert asked.strings == bare.strings
