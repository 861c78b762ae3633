"""The decode cache: the states of a forward over whole rows, found one token at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig, MistralConfig

from rlhf.models import decode_cache
from rlhf.models.actor import Actor, backbone
from rlhf.models.decode_cache import advanced, decodes, our_attention, prefilled, token_bytes
from rlhf.models.shared_cache import SharedCache

PROMPTS = [[3, 4], [3, 4], [5, 6, 7, 8, 9], [3, 4], [10, 3, 2], [10, 3, 2]]
LATER = torch.randint(0, 11, (6, 4), generator=torch.Generator().manual_seed(1))
BASE: dict[str, Any] = {"vocab_size": 11, "initializer_range": 0.3, "tie_word_embeddings": False}
SIZES: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 16,
    "intermediate_size": 24,
    "head_dim": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": None,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: GPT2Config(n_layer=3, n_embd=16, n_head=4, n_positions=20, **BASE),
    "llama": lambda: LlamaConfig(**SIZES, **BASE),
    "window": lambda: MistralConfig(sliding_window=3, **SIZES, **BASE),
    "mixed": lambda: Gemma3TextConfig(
        sliding_window=3,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        query_pre_attn_scalar=7,
        **SIZES,
        **BASE,
    ),
}


@pytest.fixture(params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(CONFIGS[request.param](), attn_implementation="sdpa")
    return Actor(made).model.eval()


@pytest.fixture(params=["step", "attention", "torch"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled: the whole step, attention alone, or nothing."""
    if request.param != "step":
        monkeypatch.setattr(decode_cache, "decode_step", lambda *_: None)
    if request.param == "torch":
        monkeypatch.setattr(decode_cache, "has_attention", lambda *_: False)


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows)) + 1  # a column that none needs
    tokens = torch.tensor([[999] * (width - len(row)) + row for row in rows])
    return tokens, tokens != 999


@torch.no_grad()
def test_states_are_those_of_a_forward_over_the_whole_row(model: Any, kernel: None) -> None:
    tokens, mask = padded(PROMPTS)
    with our_attention(model):
        states, cache = prefilled(model, tokens, mask, room=4)
        found = [states] + [advanced(model, LATER[:, t], cache) for t in range(4)]
    whole = torch.cat([tokens, LATER], 1)
    wanted = backbone(model, whole, torch.cat([mask, torch.ones_like(LATER, dtype=torch.bool)], 1))
    torch.testing.assert_close(torch.stack(found, 1), wanted[:, -5:], rtol=0, atol=2e-5)


@torch.no_grad()
def test_rows_that_stay_go_on_as_if_nothing_had_happened(model: Any, kernel: None) -> None:
    tokens, mask = padded(PROMPTS)
    still = torch.tensor([0, 2, 4, 5])
    with our_attention(model):
        _, cache = prefilled(model, tokens, mask, room=4)
        _, other = prefilled(model, tokens, mask, room=4)
        for t in range(4):
            wanted = advanced(model, LATER[:, t], cache)[still]
            if t == 2:
                other.keep(still)
            found = advanced(model, LATER[:, t] if t < 2 else LATER[still, t], other)
            torch.testing.assert_close(found if t >= 2 else found[still], wanted, rtol=0, atol=1e-5)
    if not isinstance(other, SharedCache):  # which leaves the slots of rows that went
        assert other.bytes * 6 == cache.bytes * 4


@torch.no_grad()
def test_equal_prompts_that_follow_each_other_run_once(model: Any) -> None:
    seen: list[int] = []
    model.base_model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["input_ids"].numel()), with_kwargs=True
    )
    with our_attention(model):
        prefilled(model, *padded(PROMPTS), room=1)
    assert seen == [2 + 5 + 2 + 3]


@torch.no_grad()
@pytest.mark.parametrize("most", [1, 4, 6])
def test_prompts_that_run_in_several_passes_have_the_same_states(
    model: Any, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of 2, 5, 2 and 3 tokens."""
    seen: list[int] = []
    with our_attention(model):
        states, cache = prefilled(model, *padded(PROMPTS), room=1)
        model.base_model.register_forward_pre_hook(
            lambda _, __, given: seen.append(given["input_ids"].numel()), with_kwargs=True
        )
        monkeypatch.setattr(decode_cache, "pass_tokens", lambda device: most)
        found, other = prefilled(model, *padded(PROMPTS), room=1)
    assert seen == {1: [2, 5, 2, 3], 4: [2, 5, 2, 3], 6: [2, 5, 5]}[most]
    torch.testing.assert_close(found, states, rtol=0, atol=1e-5)
    stored, wanted = (
        given.prompts if isinstance(given, SharedCache) else given.buffers for given in (other, cache)
    )
    for layer, buffers in wanted.items():
        for part, right in zip(stored[layer], buffers, strict=True):
            torch.testing.assert_close(part, right, rtol=0, atol=1e-5)


@torch.no_grad()
def test_token_0_is_no_padding(model: Any) -> None:
    with our_attention(model):
        states, cache = prefilled(model, *padded([[3, 4], [0, 3, 4], [0, 0, 3, 4]]), room=1)
    assert cache.lengths.tolist() == [2, 3, 4]
    assert not torch.allclose(states[0], states[1], atol=1e-3)


@torch.no_grad()
def test_the_cache_takes_what_was_said(model: Any, kernel: None) -> None:
    """Keys and values: layers × key heads × head dimension × four bytes, for each token of each row."""
    heads = 4 if model.config.model_type == "gpt2" else 2
    token = 2 * 3 * heads * 4 * 4
    with our_attention(model):
        assert token_bytes(model) == token
        _, cache = prefilled(model, *padded(PROMPTS), room=7)
    if isinstance(cache, SharedCache):  # four runs of prompts, once each
        assert cache.bytes == (4 * 5 + 6 * 7) * token
    else:
        assert cache.bytes == 6 * (5 + 7) * token


def test_the_attention_is_given_back(model: Any) -> None:
    with our_attention(model):
        assert model.config._attn_implementation == "packed_rows"
    assert model.config._attn_implementation == "sdpa"


def test_other_kinds_of_models_keep_their_own_cache(model: Any) -> None:
    assert decodes(model)
    model.set_attn_implementation("eager")
    assert not decodes(model)
    model.set_attn_implementation("sdpa")
    model.config.num_kv_shared_layers = 1
    assert not decodes(model)
    model.config.num_kv_shared_layers = 0
    model.config.layer_types = ["full_attention", "linear_attention"]
    assert not decodes(model)
