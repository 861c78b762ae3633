import torch

from rlhf.data.tokenizers import train_bpe
from rlhf.rewards.texts import decoded

TOKENIZER = train_bpe(["the sea is fine", "a dull film"], 300)


def test_only_tokens_under_the_mask_are_read() -> None:
    tokens = torch.tensor([TOKENIZER("the sea is fine", add_special_tokens=False)["input_ids"]])
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, 1:3] = True
    assert decoded(tokens, mask, TOKENIZER) == [TOKENIZER.decode(tokens[0, 1:3])]
    assert decoded(tokens, ~mask & False, TOKENIZER) == [""]


def test_special_tokens_are_not_text() -> None:
    words = TOKENIZER("a film", add_special_tokens=False)["input_ids"]
    tokens = torch.tensor([[TOKENIZER.bos_token_id, *words, TOKENIZER.eos_token_id]])
    assert decoded(tokens, torch.ones_like(tokens, dtype=torch.bool), TOKENIZER) == ["a film"]
