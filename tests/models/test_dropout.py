from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, LlamaConfig

from rlhf.models.dropout import dropout_left, zero_dropout, zero_dropout_config


def test_every_rate_in_a_configuration_becomes_zero() -> None:
    config = GPT2Config(resid_pdrop=0.1, embd_pdrop=0.2, attn_pdrop=0.3)
    zero_dropout_config(config)
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0, 0, 0)
    llama = LlamaConfig(attention_dropout=0.4)
    zero_dropout_config(llama)
    assert llama.attention_dropout == 0


def test_layers_and_plain_attributes_become_zero(build: Callable[..., Any]) -> None:
    gpt2, llama = build("gpt2", resid_pdrop=0.5, attn_pdrop=0.5), build("llama", attention_dropout=0.5)
    for model in (gpt2, llama):
        assert dropout_left(model)
        zero_dropout(model)
        assert not dropout_left(model)
        tokens = torch.tensor([[3, 4, 5, 6]])
        assert torch.equal(model.train()(tokens).logits, model.train()(tokens).logits)
        assert torch.equal(model.train()(tokens).logits, model.eval()(tokens).logits)


def test_what_is_left_is_named() -> None:
    assert dropout_left(nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5))) == ["1.p"]


def test_switches_with_drop_in_their_name_are_left_alone() -> None:
    module = nn.Linear(1, 1)
    module.drop_last = True  # type: ignore[assignment]
    zero_dropout(module)
    assert module.drop_last is True
