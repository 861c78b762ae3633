from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.models.actor import Actor
from rlhf.models.dropout import dropout_left
from rlhf.models.loading import expect_own_logits, expect_same_vocabulary, load_actor, load_scalar_model
from rlhf.models.scalar import ScalarModel
from rlhf.models.sources import ModelSource, Pretrained, TinyGPT2, TinyLlama

TOKENS = torch.tensor([[3, 4, 5, 6, 1]])
REAL = torch.ones_like(TOKENS, dtype=torch.bool)
SOURCES: dict[str, ModelSource] = {"gpt2": TinyGPT2(hidden=32), "llama": TinyLlama(hidden=32)}


@pytest.fixture
def saved(build: Callable[..., Any], kind: str, tied: bool, tmp_path: Path) -> Pretrained:
    build(kind, tied=tied).save_pretrained(tmp_path)
    return Pretrained(path=str(tmp_path))


def test_a_folder_gives_the_numbers_of_transformers(
    saved: Pretrained, tokenizer: Any, generator: torch.Generator
) -> None:
    logits = load_actor(saved, tokenizer, generator=generator).logits(TOKENS, REAL, 1)
    assert torch.equal(logits, AutoModelForCausalLM.from_pretrained(saved.path)(TOKENS).logits[:, :-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiny_models_pass_their_own_checks(
    kind: str, dtype: torch.dtype, tokenizer: Any, generator: torch.Generator
) -> None:
    actor = load_actor(SOURCES[kind], tokenizer, dtype=dtype, generator=generator)
    scalar = load_scalar_model(SOURCES[kind], tokenizer, dtype=dtype, generator=generator, fresh_head=True)
    for model in (actor, scalar):
        assert {weight.dtype for weight in model.parameters()} == {dtype}
        assert {str(weight.device) for weight in model.parameters()} == {"cpu"}
        assert not dropout_left(model)
    assert scalar(TOKENS, REAL).isfinite().all()


def test_a_fresh_head_sits_on_the_language_models_backbone(
    saved: Pretrained, tokenizer: Any, generator: torch.Generator
) -> None:
    before = torch.get_rng_state()
    scalar = load_scalar_model(saved, tokenizer, generator=generator, fresh_head=True)
    assert torch.equal(torch.get_rng_state(), before)
    causal = AutoModelForCausalLM.from_pretrained(saved.path)
    expected = causal.base_model(TOKENS).last_hidden_state @ scalar.head.weight[0]
    torch.testing.assert_close(scalar(TOKENS, REAL), expected, rtol=0, atol=1e-5)
    assert scalar.head.weight.std() > 0.1  # about 1/sqrt(17)
    assert scalar.model.config.num_labels == 1


def test_a_fresh_head_depends_on_the_generator_alone(saved: Pretrained, tokenizer: Any) -> None:
    heads = []
    for seed, noise in ((5, 0), (5, 1), (6, 0)):
        torch.manual_seed(noise)
        own = torch.Generator().manual_seed(seed)
        heads.append(load_scalar_model(saved, tokenizer, generator=own, fresh_head=True).head.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_random_weights_are_no_reward_model(kind: str, tokenizer: Any, generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match="is no reward model: its weights are random"):
        load_scalar_model(SOURCES[kind], tokenizer, generator=generator, fresh_head=False)


def test_a_tokenizer_larger_than_the_model_is_refused(
    build: Callable[..., Any], kind: str, tokenizer: Any, tmp_path: Path, generator: torch.Generator
) -> None:
    build(kind, vocabulary=9).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"does not fit .*: it has 11 tokens, the model embeds 9$"):
        load_actor(Pretrained(path=str(tmp_path)), tokenizer, generator=generator)


def test_a_pad_of_its_own_may_lie_outside_the_embedding(
    saved: Pretrained, tokenizer: Any, generator: torch.Generator
) -> None:
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    assert tokenizer.pad_token_id == 11
    actor = load_actor(saved, tokenizer, generator=generator)
    mask = torch.tensor([[False, True, True, True, True]])
    scored = actor(TOKENS.masked_fill(~mask, 11), mask, 2).logprobs
    assert scored.isfinite().all()
    assert actor.model.config.pad_token_id is None  # transformers would embed it


def test_a_scale_that_the_wrapper_does_not_know_is_refused(build: Callable[..., Any], kind: str) -> None:
    model = build(kind)
    model.config.logit_scale = 0.5  # no GPT-2 or Llama applies it
    with pytest.raises(ValueError, match=r"^NAME: \w+ is not supported, our logits differ from its own by"):
        expect_own_logits(Actor(model), "NAME")


def test_positions_that_the_model_ignores_are_refused(build: Callable[..., Any]) -> None:
    actor = Actor(build("gpt2"))
    inner = actor.model.base_model.forward

    def without_positions(*args: Any, position_ids: Any = None, **rest: Any) -> Any:
        return inner(*args, **rest)

    actor.model.base_model.forward = without_positions
    with pytest.raises(ValueError, match="logits with left padding differ"):
        expect_own_logits(actor, "NAME")


def test_a_vocabulary_mismatch_names_both(build: Callable[..., Any]) -> None:
    small, large = (
        Actor(build("gpt2", vocabulary=11)),
        ScalarModel(build("llama", vocabulary=12, classifier=True)),
    )
    small.model.config.name_or_path, large.model.config.name_or_path = "runs/a", "runs/b"
    expect_same_vocabulary(small, small)
    with pytest.raises(ValueError, match=r"^vocabulary mismatch: runs/a has 11 tokens, runs/b has 12$"):
        expect_same_vocabulary(small, large)
