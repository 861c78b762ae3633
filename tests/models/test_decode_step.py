"""The compiled step: states of transformers' own float64 forward, for the forms of model it knows."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from rlhf.kernels.cpu_step import has_step
from rlhf.models.actor import Actor, backbone
from rlhf.models.decode_cache import advanced, our_attention, prefilled
from rlhf.models.decode_step import decode_step
from rlhf.models.shared_cache import SharedCache

pytestmark = pytest.mark.skipif(not has_step(), reason="no C++ compiler")
BASE: dict[str, Any] = {"vocab_size": 50, "tie_word_embeddings": False, "initializer_range": 0.1}


def sizes(dim: int, heads: int = 4, key_heads: int = 2) -> dict[str, Any]:
    return {
        "num_hidden_layers": 2,
        "hidden_size": 40,
        "intermediate_size": 52,
        "head_dim": dim,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "pad_token_id": None,
        **BASE,
    }


CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**sizes(10)),
    "llama-16": lambda: LlamaConfig(**sizes(16, key_heads=4)),
    "llama-32": lambda: LlamaConfig(attention_bias=True, mlp_bias=True, **sizes(32, heads=5, key_heads=1)),
    "llama-64": lambda: LlamaConfig(
        rope_scaling={
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8,
        },
        **sizes(64),
    ),
    "llama-128": lambda: LlamaConfig(hidden_act="gelu_pytorch_tanh", **sizes(128)),
    "mistral": lambda: MistralConfig(sliding_window=3, **sizes(16)),
    "qwen2": lambda: Qwen2Config(
        use_sliding_window=True, sliding_window=3, max_window_layers=1, **(sizes(10) | {"head_dim": None})
    ),
    "qwen3": lambda: Qwen3Config(**sizes(16)),
    "gpt2": lambda: GPT2Config(n_layer=2, n_embd=48, n_head=3, n_positions=30, n_inner=52, **BASE),
    "gpt2-scaled": lambda: GPT2Config(
        n_layer=2, n_embd=40, n_head=4, n_positions=30, scale_attn_by_inverse_layer_idx=True, **BASE
    ),
}


def model_of(name: str) -> Any:
    config = CONFIGS[name]()
    if config.model_type == "qwen2":
        config.head_dim = config.hidden_size // config.num_attention_heads
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        for parameter in made.parameters():  # norms and biases too
            parameter.data += 0.1 * torch.randn_like(parameter)
    return Actor(made).model.eval()


def rows_of(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Left-padded prompts, most of them in runs of three, and four later tokens of each."""
    generator = torch.Generator().manual_seed(count)
    prompts = torch.randint(0, 50, (-(-count // 3), 6), generator=generator)
    mask = torch.arange(6) >= torch.randint(0, 5, (len(prompts), 1), generator=generator)
    later = torch.randint(0, 50, (count, 4), generator=generator)
    return prompts.repeat_interleave(3, 0)[:count], mask.repeat_interleave(3, 0)[:count], later


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize(("count", "threads"), [(1, 1), (8, 2), (21, 2)])
@torch.no_grad()
def test_states_are_those_of_float64(name: str, count: int, threads: int) -> None:
    model, (tokens, mask, later) = model_of(name), rows_of(count)
    torch.set_num_threads(threads)
    try:
        with our_attention(model):
            states, cache = prefilled(model, tokens, mask, room=4)
            assert isinstance(cache, SharedCache)
            found = [states] + [advanced(model, later[:, t], cache) for t in range(4)]
    finally:
        torch.set_num_threads(1)
    whole = torch.cat([tokens, later], 1), torch.cat([mask, torch.ones_like(later, dtype=torch.bool)], 1)
    wanted = backbone(copy.deepcopy(model).double(), *whole)[:, -5:]
    torch.testing.assert_close(torch.stack(found, 1).double(), wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["llama-32", "gpt2"])
@torch.no_grad()
def test_a_rows_numbers_are_its_own(name: str) -> None:
    """To the bit: alone, in company, with other rows gone, with one thread or two."""
    model, (tokens, mask, later) = model_of(name), rows_of(37)
    with our_attention(model):
        _, cache = prefilled(model, tokens, mask, room=4)
        together = [advanced(model, later[:, t], cache) for t in range(4)]
        torch.set_num_threads(2)
        try:
            _, cache = prefilled(model, tokens, mask, room=4)
            still = torch.tensor([2, 3, 30, 36])
            advanced(model, later[:, 0], cache)
            cache.keep(still)
            for t in range(1, 4):
                assert torch.equal(advanced(model, later[still, t], cache), together[t][still])
        finally:
            torch.set_num_threads(1)


@torch.no_grad()
def test_weights_are_read_where_they_are() -> None:
    model, (tokens, mask, later) = model_of("llama"), rows_of(5)
    with our_attention(model):
        _, cache = prefilled(model, tokens, mask, room=4)
        first = advanced(model, later[:, 0], cache)
        model.base_model.norm.weight.mul_(2.0)
        cache.lengths = cache.lengths - 1
        torch.testing.assert_close(advanced(model, later[:, 0], cache), 2.0 * first)


def test_what_is_not_known_is_left_to_the_models_own_forward() -> None:
    assert decode_step(model_of("llama"), 8) is not None
    assert decode_step(model_of("llama").double(), 8) is None
    assert decode_step(model_of("llama").bfloat16(), 8) is None
    odd = model_of("llama")
    odd.config.hidden_act = "relu"
    assert decode_step(odd, 8) is None
    adapted = model_of("llama")

    class Adapted(torch.nn.Linear):
        """A linear layer with something added to it."""

    adapted.base_model.layers[1].mlp.up_proj.__class__ = Adapted
    assert decode_step(adapted, 8) is None
    turned = model_of("llama")
    turned.base_model.rotary_emb.rope_type = "dynamic"
    assert decode_step(turned, 8) is None
    for name in ("reorder_and_upcast_attn", "add_cross_attention"):
        gpt2 = model_of("gpt2")
        setattr(gpt2.config, name, True)
        assert decode_step(gpt2, 8) is None
