"""Passes of models without numbers hold what the real passes hold, byte by byte."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, LlamaConfig

from rlhf.kernels.cpu_build import attention_library, library
from rlhf.models.actor import Actor
from rlhf.models.lora import LoRA
from rlhf.models.scalar import ScalarModel
from rlhf.models.shapes import META, NAME
from rlhf.ops.logprobs import exact_kl
from rlhf.planning.held import Held
from rlhf.planning.passes import Texts, Wrapper, logprobs, swept_loss, values

ROWS, LENGTH, VOCABULARY = 12, 40, 3000

needs_compiler = pytest.mark.skipif(
    library() is None or attention_library() is None, reason="without a compiler other kernels run"
)


def config(kind: str, layers: int = 3) -> Any:
    if kind == "gpt2":
        return GPT2Config(n_layer=layers, n_embd=96, n_head=4, n_positions=64, vocab_size=VOCABULARY)
    return LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=96,
        intermediate_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
        tie_word_embeddings=kind == "tied",
    )


def built(kind: str, wrapper: type, *, lora: LoRA | None = None, **others: Any) -> Any:
    settings = config(kind)
    settings.num_labels = 1
    auto = AutoModelForCausalLM if wrapper is Actor else AutoModelForSequenceClassification
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = wrapper(auto.from_config(settings), **others)
    if lora is not None:
        lora(made, torch.Generator())
    return made.train()


def both(kind: str, wrapper: type, **others: Any) -> tuple[Any, Any]:
    """A real one, and one without numbers."""
    real = built(kind, wrapper, **others)
    with META:
        shape = built(kind, wrapper, **others)
    shape.model.set_attn_implementation(NAME)
    return real, shape


@pytest.fixture
def texts() -> Texts:
    """Rows of different lengths that do not begin alike; all but the first ten tokens are scored."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, VOCABULARY, (ROWS, LENGTH), generator=generator)
    lengths = torch.linspace(LENGTH // 2, LENGTH, ROWS).long()
    real = torch.arange(LENGTH) < lengths[:, None]
    return Texts(tokens=tokens, real=real, scored=int((real[:, 10:]).sum()), columns=LENGTH - 10)


def wanted(texts: Texts) -> Tensor:
    return texts.real[:, 1:] & (torch.arange(1, LENGTH) >= 10)


def swept(actor: Actor, texts: Texts) -> Tensor:
    return actor(
        texts.tokens, texts.real, 1, wanted=wanted(texts), token_loss=lambda found: -found.logprobs
    ).loss


def twice(actor: Actor, texts: Texts) -> Tensor:
    return actor(texts.tokens, texts.real, 1, wanted=wanted(texts)).logprobs


def scores(model: ScalarModel, texts: Texts) -> Tensor:
    return model(texts.tokens, texts.real)


KINDS: dict[str, tuple[type, Callable[..., Tensor], Callable[..., Tensor]]] = {
    "one sweep": (Actor, swept, lambda *given: swept_loss(*given, on_gpu=False)),
    "two passes": (Actor, twice, lambda *given: logprobs(*given, on_gpu=False)[0]),
    "values": (ScalarModel, scores, lambda *given: values(*given, on_gpu=False)),
}


def held(run: Callable[[], Tensor], wrapper: Wrapper, passes: int) -> int:
    """The most that so many forwards and backwards hold."""
    with Held() as counted:
        for _ in range(passes):
            run().sum().backward()
    wrapper.zero_grad(set_to_none=True)
    return counted.peak


WAYS = [("gpt2", False, 2), ("gpt2", True, 1), ("tied", False, 1), ("tied", True, 2), ("untied", False, 2)]
"""Model, whether activations are checkpointed, passes of a step."""


@needs_compiler
@pytest.mark.parametrize(("kind", "checkpointing", "passes"), WAYS)
@pytest.mark.parametrize("what", KINDS)
def test_a_pass_with_gradient(what: str, kind: str, checkpointing: bool, passes: int, texts: Texts) -> None:
    wrapper, real_pass, planned_pass = KINDS[what]
    real, shape = both(kind, wrapper, packed=True, gradient_checkpointing=checkpointing)
    expected = held(lambda: real_pass(real, texts), real, passes)
    assert held(lambda: planned_pass(shape, texts), shape, passes) == pytest.approx(expected, rel=0.03)


@needs_compiler
@pytest.mark.parametrize("what", KINDS)
def test_a_pass_of_adapters(what: str, texts: Texts) -> None:
    pytest.importorskip("peft")
    wrapper, real_pass, planned_pass = KINDS[what]
    real, shape = both("tied", wrapper, packed=True, lora=LoRA(rank=4))
    expected = held(lambda: real_pass(real, texts), real, 2)
    assert held(lambda: planned_pass(shape, texts), shape, 2) == pytest.approx(expected, rel=0.03)


@needs_compiler
def test_logits_of_two_models_and_their_kl(texts: Texts) -> None:
    """The (B, T, V) logits of both are there at once."""
    real, shape = both("untied", Actor, packed=True)

    def measured() -> Tensor:
        first, second = (real(texts.tokens, texts.real, 10, full=True).logits for _ in range(2))
        return exact_kl(first, second)

    def planned() -> Tensor:
        first, second = (logprobs(shape, texts, on_gpu=False, logits=True)[1] for _ in range(2))
        return exact_kl(first, second)

    found = []
    for run in (measured, planned):
        with torch.no_grad(), Held() as counted:
            run()
        found.append(counted.peak)
    assert found[0] > 4 * 4 * ROWS * (LENGTH - 10) * VOCABULARY
    assert found[1] == pytest.approx(found[0], rel=0.03)


@needs_compiler
@pytest.mark.parametrize("what", ["two passes", "values"])
def test_a_pass_without_gradient(what: str, texts: Texts) -> None:
    wrapper, real_pass, planned_pass = KINDS[what]
    real, shape = both("tied", wrapper, packed=True)
    found = []
    for run, model in ((real_pass, real), (planned_pass, shape)):
        with torch.no_grad(), Held() as counted:
            run(model, texts)
        found.append(counted.peak)
    assert found[1] == pytest.approx(found[0], rel=0.05)
