import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from rlhf.models.actor import Actor
from rlhf.models.heads import LogprobHead, ScalarHead, logit_transform

SIZES: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 2,
    "eos_token_id": 1,
    "bos_token_id": 0,
}
BENT = [
    (Gemma2ForCausalLM, Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=2.0)),
    (CohereForCausalLM, CohereConfig(**SIZES, logit_scale=0.25)),
    (GraniteForCausalLM, GraniteConfig(**SIZES, logits_scaling=3.0)),
    (PhiForCausalLM, PhiConfig(**SIZES)),  # a bias in the head
]


def linear(bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3, bias=bias)


@pytest.mark.parametrize(("kind", "config"), BENT, ids=lambda value: getattr(value, "__name__", ""))
def test_logits_are_the_models_own_with_scale_softcap_and_bias(kind: Any, config: Any) -> None:
    torch.manual_seed(0)
    model = kind(config).eval()
    if model.lm_head.bias is not None:
        nn.init.normal_(model.lm_head.bias)
    tokens = torch.arange(10).reshape(2, 5)
    own = copy.deepcopy(model)(tokens).logits[:, :-1]
    actor = Actor(model)
    torch.testing.assert_close(actor.logits(tokens, tokens >= 0, 1), own)
    torch.testing.assert_close(actor.model(tokens).logits[:, :-1], own)  # the model itself stays whole


def test_scale_and_softcap_by_hand() -> None:
    source = linear()
    hidden = torch.tensor([1.0, -2.0, 0.5, 3.0])
    projected = source.weight @ hidden
    head = LogprobHead(source, scale=0.5, softcap=3.0)
    torch.testing.assert_close(head.logits(hidden), 3.0 * torch.tanh(0.5 * projected / 3.0))


def test_logprobs_come_from_the_bent_logits_over_the_temperature() -> None:
    head = LogprobHead(linear(bias=True), scale=2.0, softcap=1.5)
    hidden, targets = torch.ones(3, 4), torch.arange(3)
    scored = head(hidden, targets, 0.5)
    expected = (head.logits(hidden) / 0.5).log_softmax(-1)
    torch.testing.assert_close(scored.logprobs, expected.diagonal())


def test_the_parameters_are_the_same_objects() -> None:
    source = linear(bias=True)
    head = LogprobHead(source)
    assert head.weight is source.weight
    assert head.bias is source.bias


def test_granite_divides_what_cohere_multiplies() -> None:
    assert logit_transform(BENT[1][1]) == (0.25, None)
    assert logit_transform(BENT[2][1]) == (1 / 3.0, None)
    assert logit_transform(BENT[0][1]) == (1.0, 2.0)


def test_fresh_scalar_head_has_the_std_of_the_paper_and_no_bias() -> None:
    width = 4096
    head = ScalarHead(width, dtype=torch.float32)
    head.draw(torch.Generator().manual_seed(1))
    ratio = float(head.weight.detach().double().std()) * math.sqrt(width + 1)
    assert abs(ratio - 1) < 3 / math.sqrt(2 * width)
    assert head.bias is None


def test_scalar_head_is_w_times_h_in_float32_whatever_the_weights() -> None:
    head = ScalarHead(3, dtype=torch.bfloat16)
    head.weight.data[:] = torch.tensor([[1.0, 0.5, -2.0]])
    hidden = torch.tensor([[256.0, 1.0, 0.0], [1.0, 2.0, 3.0]]).to(torch.bfloat16)
    output = head(hidden)
    assert output.dtype == torch.float32
    assert output.tolist() == [256.5, -4.0]  # bfloat16 would round 256.5 to 256


@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_logits_of_bfloat16_are_not_rounded_to_it(learning: bool, bias: bool) -> None:
    """The sampler draws from the numbers that log-probs are made of."""
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(64, 50, bias=bias, dtype=torch.bfloat16)
    linear.weight.data = torch.randn(50, 64, generator=generator).bfloat16()
    hidden = (10 * torch.randn(3, 7, 64, generator=generator)).bfloat16()
    head = LogprobHead(linear)
    with torch.set_grad_enabled(learning):
        logits = head.logits(hidden)
    own = None if linear.bias is None else linear.bias.double()
    expected = torch.nn.functional.linear(hidden.double(), linear.weight.double(), own)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), expected, rtol=1e-6, atol=1e-4)
    assert (logits.bfloat16().double() - expected).abs().max() > 0.1
    targets = torch.randint(50, (3, 7), generator=generator)
    logprobs = head(hidden, targets).logprobs.double()
    exact = expected.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(logprobs, exact, rtol=1e-6, atol=1e-4)
