"""Where a model comes from: somebody trained it, or it is tiny and random. Components for Hydra."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerBase,
)

from rlhf.models.dropout import zero_dropout_config
from rlhf.models.pretrained import model_folder, read_causal_lm, read_classifier
from rlhf.models.quiet import quiet


@dataclass(kw_only=True, slots=True)
class ModelSource(ABC):
    """Where a model comes from."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What error messages call the model."""

    @abstractmethod
    def causal_lm(
        self, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, generator: torch.Generator
    ) -> Any:
        """A causal language model of transformers, dropout zero, on the CPU."""


@dataclass(kw_only=True, slots=True)
class Pretrained(ModelSource):
    """A model that somebody trained: another run's folder, any Hugging Face folder or hub name."""

    path: str = "???"
    """A run's folder (its model/ is taken), a folder with config.json and safetensors, or a hub name."""

    @property
    def name(self) -> str:
        """The path as the user wrote it."""
        return self.path

    @property
    def folder(self) -> str:
        """The folder with ``config.json``, or the hub name."""
        return model_folder(self.path)

    def causal_lm(
        self, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, generator: torch.Generator
    ) -> Any:
        """The folder's causal language model; nothing in it is random."""
        return read_causal_lm(self.path, tokenizer, dtype)

    def classifier(self, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> Any:
        """The folder's reward model, its trained head included."""
        return read_classifier(self.path, tokenizer, dtype)


@dataclass(kw_only=True, slots=True)
class TinyLlama(ModelSource):
    """A small Llama with random weights: rotary positions, RMSNorm, gated MLP."""

    layers: int = 2
    """Transformer blocks."""
    hidden: int = 64
    """Width of the residual stream; a multiple of twice the heads."""
    heads: int = 4
    """Attention heads."""
    intermediate: int = 128
    """Width of the MLP."""
    context: int = 64
    """Positions, prompt and response together."""
    tie_embeddings: bool = True
    """Whether the output head is the embedding."""

    def __post_init__(self) -> None:
        _expect_sizes(self, ("layers", "hidden", "heads", "intermediate", "context"), 2 * self.heads)

    @property
    def name(self) -> str:
        """The component's name."""
        return "TinyLlama"

    def causal_lm(
        self, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, generator: torch.Generator
    ) -> Any:
        """A random Llama with the tokenizer's vocabulary."""
        config = LlamaConfig(
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            intermediate_size=self.intermediate,
            max_position_embeddings=self.context,
            tie_word_embeddings=self.tie_embeddings,
            **_vocabulary(tokenizer),
        )
        return _random(config, self.name, dtype, generator)


@dataclass(kw_only=True, slots=True)
class TinyGPT2(ModelSource):
    """A small GPT-2 with random weights: learned absolute positions, LayerNorm."""

    layers: int = 2
    """Transformer blocks."""
    hidden: int = 64
    """Width of the residual stream; a multiple of the heads."""
    heads: int = 4
    """Attention heads."""
    context: int = 64
    """Positions, prompt and response together."""
    tie_embeddings: bool = True
    """Whether the output head is the embedding."""

    def __post_init__(self) -> None:
        _expect_sizes(self, ("layers", "hidden", "heads", "context"), self.heads)

    @property
    def name(self) -> str:
        """The component's name."""
        return "TinyGPT2"

    def causal_lm(
        self, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, generator: torch.Generator
    ) -> Any:
        """A random GPT-2 with the tokenizer's vocabulary."""
        config = GPT2Config(
            n_layer=self.layers,
            n_embd=self.hidden,
            n_head=self.heads,
            n_positions=self.context,
            tie_word_embeddings=self.tie_embeddings,
            **_vocabulary(tokenizer),
        )
        return _random(config, self.name, dtype, generator)


def _expect_sizes(source: Any, fields: tuple[str, ...], divisor: int) -> None:
    kind = type(source).__name__
    for field in fields:
        if getattr(source, field) < 1:
            raise ValueError(f"{kind}.{field} must be at least 1, got {getattr(source, field)}")
    if source.hidden % divisor:
        raise ValueError(f"{kind}.hidden must be a multiple of {divisor}, got {source.hidden}")


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _random(config: Any, name: str, dtype: torch.dtype, generator: torch.Generator) -> Any:
    """Random weights that depend on the generator alone; the global random state is left as it was."""
    zero_dropout_config(config)
    config.name_or_path = name
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]), quiet():
        torch.default_generator.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(dtype)
