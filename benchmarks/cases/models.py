"""Random Llama-style models of the benchmarks' sizes; no weights are downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf.models.actor import Actor


@dataclass(kw_only=True, slots=True)
class Size:
    """A model's size."""

    layers: int
    hidden: int
    vocabulary: int
    heads: int = 4
    context: int = 512

    @property
    def name(self) -> str:
        """Layers / hidden."""
        return f"{self.layers}-layer/{self.hidden}"

    def config(self) -> LlamaConfig:
        """Of transformers."""
        return LlamaConfig(
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            intermediate_size=3 * self.hidden,
            max_position_embeddings=self.context,
            vocab_size=self.vocabulary,
            tie_word_embeddings=True,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
        )

    def causal_lm(self, seed: int = 0) -> Any:
        """A random model of transformers, the global random state left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return LlamaForCausalLM(self.config())

    def actor(self, seed: int = 0, *, packed: bool = False) -> Actor:
        """The same in our wrapper."""
        return Actor(self.causal_lm(seed), packed=packed)

    def flops(self, lengths: torch.Tensor) -> float:
        """Of one training step's matrix products over rows of these lengths: causal attention, the head.

        Six times a weight and token (forward, dX, dW), and of attention 6·l²·hidden a row and layer.
        """
        weights = self.layers * (4 * self.hidden**2 + 3 * self.hidden * 3 * self.hidden)
        weights += self.vocabulary * self.hidden
        tokens, squares = float(lengths.sum()), float((lengths.double() ** 2).sum())
        return 6.0 * weights * tokens + 6.0 * self.layers * self.hidden * squares


TINY = Size(layers=2, hidden=32, vocabulary=211, heads=2)
SMALL = Size(layers=4, hidden=256, vocabulary=8192)
MIDDLE = Size(layers=6, hidden=512, vocabulary=8192, heads=8)
