"""Random Llama-style models of the benchmarks' sizes; no weights are downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from benchmarks.cases.rows import FIRST
from rlhf.models.actor import Actor
from rlhf.models.scalar import ScalarModel


@dataclass(kw_only=True, slots=True)
class Size:
    """A model's size."""

    layers: int
    hidden: int
    vocabulary: int
    heads: int = 4
    kv_heads: int | None = None
    """None for as many as heads."""
    intermediate: int | None = None
    """None for three times hidden."""
    context: int = 512
    called: str | None = None
    """Another name than its layers and hidden size."""

    @property
    def name(self) -> str:
        """Layers / hidden, where it has no other."""
        return self.called or f"{self.layers}-layer/{self.hidden}"

    @property
    def inner(self) -> int:
        """Width of the feed-forward layers."""
        return self.intermediate or 3 * self.hidden

    @property
    def weights(self) -> int:
        """Of all matrices, the head's among them and the embeddings', which are the same."""
        keys = 2 * self.hidden**2 * (self.kv_heads or self.heads) // self.heads
        each = 2 * self.hidden**2 + keys + 3 * self.hidden * self.inner
        return self.layers * each + self.vocabulary * self.hidden

    def config(self) -> LlamaConfig:
        """Of transformers."""
        return LlamaConfig(
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads or self.heads,
            intermediate_size=self.inner,
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

    def classifier(self, seed: int = 0) -> Any:
        """A random reward model of transformers, whose scores differ by about one."""
        config = self.config()
        config.num_labels = 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = LlamaForSequenceClassification(config)
        with torch.no_grad():
            model.score.weight *= 50 / self.hidden**0.5
        return model

    def scalar(self, seed: int = 0, *, packed: bool = False) -> ScalarModel:
        """The same in our wrapper."""
        return ScalarModel(self.classifier(seed), packed=packed)

    def actor(self, seed: int = 0, *, packed: bool = False) -> Actor:
        """The same in our wrapper."""
        return Actor(self.causal_lm(seed), packed=packed)

    def flops(self, lengths: torch.Tensor) -> float:
        """Of one training step's matrix products over rows of these lengths: causal attention, the head.

        Six times a weight and token (forward, dX, dW), and of attention 6·l²·hidden a row and layer.
        """
        tokens, squares = float(lengths.sum()), float((lengths.double() ** 2).sum())
        return 6.0 * self.weights * tokens + 6.0 * self.layers * self.hidden * squares


def endless(model: Any) -> Any:
    """The model with weights such that it never draws the tokenizer's tokens for padding, end and unknown.

    Its embeddings, which are its head too, get a first coordinate that is 1 for every other token and −1 for
    these; it outweighs the others in the last hidden state.
    """
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        weight[:, 0] = 1.0
        weight[:FIRST, 0] = -1.0
    return model


def tokens_left(vocabulary: int, longest: int) -> torch.Tensor:
    """(V,) how many tokens follow each one in a `countdown`: 1 … longest; 0 END; −1 padding, unknown."""
    numbers = 1 + (torch.arange(vocabulary) - FIRST) % longest
    numbers[:FIRST] = torch.tensor([-1, 0, -1])
    return numbers


def countdown(model: Any, longest: int) -> Any:
    """The model with a response of as many tokens as the last token of its prompt says (`tokens_left`).

    The first coordinates of an embedding hold a code of its token's number. They outweigh what the layers
    add, and in a head of its own, of the same size, each token has the code of the next larger number: after
    a token only those can be drawn that are one nearer to the end.
    """
    codes, embeddings = _codes(longest + 2), model.get_input_embeddings().weight
    numbers = tokens_left(len(embeddings), longest)
    head = embeddings.detach().clone()
    with torch.no_grad():
        embeddings[:, :WIDTH] = 20.0 * codes[numbers.clamp(min=0)] * (numbers >= 0).unsqueeze(1)
        head[:, :WIDTH] = 1.5 * codes[numbers + 1] * (numbers >= 0).unsqueeze(1)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(head)
    return model


def _codes(count: int) -> torch.Tensor:
    """(count, WIDTH) of ±1, no two of which agree in many more places than they differ."""
    generator = torch.Generator().manual_seed(0)
    found = torch.empty(0, WIDTH)
    while len(found) < count:
        drawn = torch.randint(0, 2, (1, WIDTH), generator=generator).mul(2.0).sub(1.0)
        if bool(((found @ drawn.T).abs() <= WIDTH * 3 / 8).all()):
            found = torch.cat([found, drawn])
    return found


WIDTH = 32
"""Coordinates of a code."""
TINY = Size(layers=2, hidden=32, vocabulary=211, heads=2)
TWO = Size(layers=2, hidden=64, vocabulary=512, heads=2)
QUICK_START = Size(layers=3, hidden=128, vocabulary=4096, context=256, called="quick start")
"""The shape of the README's model."""
SMALL = Size(layers=4, hidden=256, vocabulary=8192)
MIDDLE = Size(layers=6, hidden=512, vocabulary=8192, heads=8)
SMOL = Size(layers=30, hidden=576, vocabulary=49_152, heads=9, kv_heads=3, intermediate=1536, called="135M")
"""The shape of SmolLM2-135M."""
BILLION = Size(
    layers=28,
    hidden=1536,
    vocabulary=151_936,
    heads=12,
    kv_heads=2,
    intermediate=8960,
    context=2048,
    called="1.5B",
)
"""The shape of Qwen2.5-1.5B, without its biases."""
HALF_BILLION = Size(
    layers=24, hidden=896, vocabulary=151_936, heads=14, kv_heads=2, intermediate=4864, called="0.5B"
)
"""The shape of Qwen2.5-0.5B, without its biases."""
OPT = Size(layers=24, hidden=2048, vocabulary=50_272, heads=32, intermediate=5464, called="1.3B")
"""As many weights as OPT-1.3B, in Llama's form: three products of 5464 for two of 8192."""
OPT_SMALL = Size(layers=24, hidden=1024, vocabulary=50_272, heads=16, intermediate=2736, called="350M")
"""As many weights as OPT-350M."""
