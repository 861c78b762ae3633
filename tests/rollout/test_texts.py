import torch

from rlhf.batch import Rollout
from rlhf.data.tokenizers import train_bpe
from rlhf.rollout.texts import RolloutTexts

TOKENIZER = train_bpe(["the sea is fine", "a dull film"], 300)


class Rows:
    """Three prompts."""

    def texts(self, index: torch.Tensor) -> list[str]:
        return [["the sea", "a film", "dull"][row] for row in index.tolist()]

    def columns(self, index: torch.Tensor) -> list[dict[str, int]]:
        return [{"row": row} for row in index.tolist()]


def rollout(responses: list[str], index: list[int], ended: list[bool]) -> Rollout:
    """The responses, with an end token where they ended, and with words after it that count for nothing."""
    rows = [TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in responses]
    lengths = [len(row) + end for row, end in zip(rows, ended, strict=True)]
    width = max(lengths)
    junk = TOKENIZER("fine" * width, add_special_tokens=False)["input_ids"]
    tokens = [[*row, TOKENIZER.eos_token_id, *junk][:width] for row in rows]
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    return Rollout(
        tokens=torch.cat([torch.zeros(len(rows), 2, dtype=torch.int64), torch.tensor(tokens)], dim=1),
        prompt_mask=torch.ones(len(rows), 2, dtype=torch.bool),
        mask=mask,
        ended=torch.tensor(ended),
        sampler_logprobs=torch.zeros(len(rows), width),
        index=torch.tensor(index),
        group=torch.arange(len(rows)),
    )


def test_responses_are_the_tokens_under_the_mask_without_the_end_token() -> None:
    texts = RolloutTexts(Rows(), TOKENIZER)
    batch = rollout([" is fine", " a dull film"], [0, 1], [True, False])
    assert texts.responses(batch) == [" is fine", " a dull film"]


def test_an_empty_response_is_an_empty_text() -> None:
    assert RolloutTexts(Rows(), TOKENIZER).responses(rollout(["", "sea"], [0, 1], [True, True])) == [
        "",
        "sea",
    ]


def test_prompts_and_columns_follow_the_row_of_the_data_set() -> None:
    texts = RolloutTexts(Rows(), TOKENIZER)
    batch = rollout(["a", "a", "a"], [2, 0, 2], [True] * 3)
    assert texts.prompts(batch) == ["dull", "the sea", "dull"]
    assert texts.columns(batch) == [{"row": 2}, {"row": 0}, {"row": 2}]


def test_samples_are_the_first_rows_with_their_numbers() -> None:
    texts = RolloutTexts(Rows(), TOKENIZER)
    batch = rollout([" is fine", " film", "a"], [0, 1, 2], [True, False, True])
    shown = texts.samples(batch, {"score": torch.tensor([1.5, -2.0, 3.0])}, 2)
    assert shown == [
        {"prompt": "the sea", "response": " is fine", "ended": True, "score": 1.5},
        {"prompt": "a film", "response": " film", "ended": False, "score": -2.0},
    ]
    assert len(texts.samples(batch, {}, 10)) == 3
