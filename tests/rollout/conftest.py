"""Tiny real policies and prompts of different lengths."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig

from rlhf.batch import PromptBatch
from rlhf.models.actor import Actor


@pytest.fixture
def build() -> Callable[..., Actor]:
    """A policy with random weights, the same ones every time.

    "grouped" queries share keys; "window" attends to four tokens.
    """

    def build(kind: str, *, vocabulary: int = 11, context: int = 40, packed: bool = False) -> Actor:
        shared: dict[str, Any] = {
            "vocab_size": vocabulary,
            "initializer_range": 0.3,
            "tie_word_embeddings": False,
        }
        shared |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        if kind == "gpt2":
            config: Any = GPT2Config(n_layer=2, n_embd=16, n_head=2, n_positions=context, **drops, **shared)
        else:
            sizes = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24}
            heads = {"num_attention_heads": 4, "max_position_embeddings": context, "head_dim": 4}
            heads["num_key_value_heads"] = 4 if kind == "llama" else 2
            config = LlamaConfig(**sizes, **heads, **shared)
            if kind == "window":
                config = MistralConfig(sliding_window=4, **sizes, **heads, **shared)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Actor(AutoModelForCausalLM.from_config(config), packed=packed)

    return build


@pytest.fixture(params=["gpt2", "llama", "grouped", "window"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def prompts() -> Callable[..., PromptBatch]:
    """Left-padded prompts, the pads far outside every vocabulary."""

    def prompts(*rows: list[int]) -> PromptBatch:
        width = max(map(len, rows))
        tokens = torch.tensor([[999] * (width - len(row)) + row for row in rows])
        number = torch.arange(len(rows))
        return PromptBatch(tokens=tokens, mask=tokens != 999, index=number, group=number)

    return prompts


@pytest.fixture
def noise() -> Callable[..., torch.Tensor]:
    def noise(rows: int, width: int, seed: int = 0) -> torch.Tensor:
        return torch.rand(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    return noise
