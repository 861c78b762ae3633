"""Adapters against weights changed by hand, against peft's own reading, and against themselves, off."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from rlhf.models.actor import Actor
from rlhf.models.adapters import save_adapter
from rlhf.models.dropout import dropout_left
from rlhf.models.loading import load_actor
from rlhf.models.lora import LoRA, Unadapted, adapted_layers, without_adapters
from rlhf.models.pretrained import read_causal_lm, read_classifier
from rlhf.models.saving import save_model
from rlhf.models.scalar import ScalarModel
from rlhf.models.sources import Pretrained, TinyLlama
from rlhf.ops.logprobs import exact_kl

TOKENS = torch.tensor([[3, 4, 5, 6, 7], [2, 2, 8, 9, 10]])
MASK = torch.tensor([[True] * 5, [False] * 2 + [True] * 3])
LINEAR = {
    "llama": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
    "gpt2": ["c_attn", "c_fc", "c_proj"],
}


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def adapted(model: Any, *, seed: int = 5, zero: bool = False, **fields: Any) -> Any:
    """The wrapper with adapters, by default with a B that has been trained somehow."""
    LoRA(**({"rank": 2, "alpha": 6.0} | fields))(model, seeded(seed))
    generator = seeded(6)
    for layer in adapted_layers(model).values():
        b = layer.lora_B["default"].weight
        if not zero:
            b.data.copy_(torch.randn(b.shape, generator=generator, dtype=torch.float64) / 4)
    return model


def numbers(wrapper: Actor | ScalarModel) -> Tensor:
    """What a wrapper is used for: logits, or values."""
    found = (
        wrapper(TOKENS, MASK, 1, full=True).logits if isinstance(wrapper, Actor) else wrapper(TOKENS, MASK)
    )
    return found.detach()


def changed_by_hand(wrapper: Actor, plain: Any, factor: float) -> Any:
    """The transformers model ``plain`` with factor·B·A added to its matrices, element by element."""
    for name, layer in adapted_layers(wrapper.model).items():
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        weight = plain.get_submodule(name).weight.data
        change = torch.einsum("or,ri->oi", b, a).detach() * factor
        weight += change if isinstance(plain.get_submodule(name), nn.Linear) else change.T
    return plain


def test_an_adapter_adds_its_product_to_the_weights(build: Callable[..., Any], kind: str) -> None:
    """W + (6/2)·B·A in float64; GPT-2 keeps W transposed."""
    plain = build(kind).double()
    actor = adapted(Actor(copy.deepcopy(plain)))
    expected = Actor(changed_by_hand(actor, copy.deepcopy(plain), 3.0))
    torch.testing.assert_close(numbers(actor), numbers(expected))
    assert float((numbers(actor) - numbers(Actor(plain))).abs().max()) > 0.1


def test_without_training_it_is_the_model_it_started_from(actor: Actor) -> None:
    before = numbers(actor)
    adapted(actor, zero=True)
    reference = Unadapted(actor, actor)
    kl = exact_kl(numbers(actor), reference(TOKENS, MASK, 1, full=True).logits, 1.0)
    assert torch.equal(numbers(actor), before)
    assert kl.abs().max() == 0.0


def test_switched_off_it_stays_that_model_and_gradients_are_none_of_its_business(actor: Actor) -> None:
    before = numbers(actor)
    adapted(actor)
    wanted = [p.requires_grad for p in actor.parameters()]
    actor(TOKENS, MASK, 1).logprobs.sum().backward()
    expected = [p.grad.clone() for p in actor.parameters() if p.grad is not None]
    actor.zero_grad()
    loss = actor(TOKENS, MASK, 1).logprobs.sum()
    assert torch.equal(Unadapted(actor, actor)(TOKENS, MASK, 1, full=True).logits, before)
    loss.backward()  # the reference was read between forward and backward
    found = [p.grad for p in actor.parameters() if p.grad is not None]
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert [p.requires_grad for p in actor.parameters()] == wanted
    with pytest.raises(RuntimeError, match="stop"), without_adapters(actor):
        raise RuntimeError("stop")
    assert not torch.equal(numbers(actor), before)  # on again


@pytest.mark.parametrize("role", ["actor", "scalar"])
def test_adapters_alone_are_trained_and_a_scalar_head(
    role: str, kind: str, build: Callable[..., Any]
) -> None:
    scalar = role == "scalar"
    wrapper = adapted((ScalarModel if scalar else Actor)(build(kind, classifier=scalar)), zero=True)
    before = {name: tensor.clone() for name, tensor in wrapper.named_parameters()}
    optimizer = torch.optim.SGD([p for p in wrapper.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # with B = 0 the first step moves B alone
        found = wrapper(TOKENS, MASK, 1)
        (found if scalar else found.logprobs).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, tensor in wrapper.named_parameters() if not torch.equal(tensor, before[name])}
    expected = {name for name in before if ".lora_" in name}
    assert len(expected) == 2 * 2 * len(LINEAR[kind]) + (0 if kind == "llama" else 4)  # c_proj twice a block
    assert moved == expected | ({"model.score.weight"} if scalar else set())


def test_same_seed_gives_the_same_initial_weights(build: Callable[..., Any]) -> None:
    """Whatever the global random state, which is left as it was; A within ±1/√in."""
    found = []
    for seed, mess in ((1, 0), (1, 7), (2, 0)):
        torch.manual_seed(mess)
        before = torch.get_rng_state()
        actor = adapted(Actor(build("llama")), seed=seed, zero=True)
        assert torch.equal(torch.get_rng_state(), before)
        found.append({name: part for name, part in actor.named_parameters() if "lora_A" in name})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not any(torch.equal(found[0][name], found[2][name]) for name in found[0])
    for part in found[0].values():
        assert 0.5 < part.detach().abs().max().item() * part.shape[1] ** 0.5 <= 1.0
    parts = list(found[0].values())
    assert not torch.equal(parts[0], parts[1])


def test_layers_are_chosen_by_name(build: Callable[..., Any], kind: str) -> None:
    every = adapted(Actor(build(kind)))
    assert sorted({name.rpartition(".")[2] for name in adapted_layers(every)}) == LINEAR[kind]
    chosen = LINEAR[kind][:1]
    some = adapted(Actor(build(kind)), target_modules=chosen)
    assert {name.rpartition(".")[2] for name in adapted_layers(some)} == set(chosen)
    with pytest.raises(
        ValueError, match=r"LoRA\.target_modules: \w+Model has no linear layer query, it has "
    ):
        adapted(Actor(build(kind)), target_modules=["query"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "LoRA.rank must be at least 1, got 0"),
        ({"alpha": 0.0}, "LoRA.alpha must be positive and finite, got 0.0"),
        ({"alpha": float("inf")}, "LoRA.alpha must be positive and finite, got inf"),
    ],
)
def test_what_would_leave_nothing_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoRA(**fields)


def test_nothing_is_dropped(actor: Actor) -> None:
    assert dropout_left(adapted(actor)) == []


def test_packed_rows_and_recomputed_activations_give_the_same_gradient(
    build: Callable[..., Any], kind: str
) -> None:
    found = []
    for options in ({}, {"packed": True}, {"packed": True, "gradient_checkpointing": True}):
        actor = adapted(Actor(build(kind).double(), **options)).train()
        swept = actor(TOKENS, MASK, 1, token_loss=lambda found: -found.logprobs)
        swept.loss.backward()
        found.append({name: p.grad for name, p in actor.named_parameters() if p.grad is not None})
        assert all(".lora_" in name for name in found[-1])
    for other in found[1:]:
        for name, grad in found[0].items():
            torch.testing.assert_close(other[name], grad)


def test_random_weights_take_none(tokenizer: Any, generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match="lora needs a model that somebody trained, got TinyLlama"):
        load_actor(TinyLlama(), tokenizer, generator=generator, lora=LoRA())


def test_a_missing_package_ends_in_the_command_that_gets_it(
    actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf.models.lora.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'not installed: pip install "rlhf\[lora\]"'):
        adapted(actor)


# On disk


@pytest.fixture
def base(build: Callable[..., Any], kind: str, tied: bool, tokenizer: Any, tmp_path: Path) -> Path:
    build(kind, tied=tied).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def loaded(folder: Path, tokenizer: Any, *, packed: bool = False) -> Actor:
    source, generator = Pretrained(path=str(folder)), seeded(0)
    return load_actor(source, tokenizer, dtype=torch.float64, generator=generator, packed=packed)


def test_the_merged_folder_is_an_ordinary_one(base: Path, tokenizer: Any, tmp_path: Path) -> None:
    actor = adapted(loaded(base, tokenizer))
    save_model(actor, actor.state_dict(), tokenizer, tmp_path / "model")
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float64)
    torch.testing.assert_close(alone(TOKENS[:1]).logits[:, :-1].detach(), numbers(actor)[:1])
    assert not list((tmp_path / "model").glob("adapter*"))


def test_the_folder_of_adapters_is_pefts(base: Path, tokenizer: Any, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    actor = adapted(loaded(base, tokenizer))
    save_adapter(actor, actor.state_dict().items(), tokenizer, tmp_path / "run" / "adapter")
    theirs = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run" / "adapter", dtype=torch.float64)
    torch.testing.assert_close(theirs(TOKENS[:1]).logits[:, :-1].detach(), numbers(actor)[:1])
    ours = Actor(read_causal_lm(str(tmp_path / "run"), tokenizer, torch.float64))
    torch.testing.assert_close(numbers(ours), numbers(actor))
    assert adapted_layers(ours) == {}
    assert all(parameter.requires_grad for parameter in ours.parameters())
    with pytest.raises(ValueError, match="is no reward model: its adapters are a language model's"):
        read_classifier(str(tmp_path / "run"), tokenizer, torch.float32)


def test_a_reward_models_adapters_bring_its_head(base: Path, tokenizer: Any, tmp_path: Path) -> None:
    from peft import AutoPeftModelForSequenceClassification

    from rlhf.models.loading import load_scalar_model

    source = Pretrained(path=str(base))
    scalar = load_scalar_model(source, tokenizer, dtype=torch.float64, generator=seeded(0), fresh_head=True)
    adapted(scalar)
    folder = tmp_path / "run" / "adapter"
    save_adapter(scalar, scalar.state_dict().items(), tokenizer, folder)
    expected = numbers(scalar)
    theirs = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float64)
    torch.testing.assert_close(theirs(TOKENS[:1]).logits[0, 0].detach(), expected[0, 4])
    ours = ScalarModel(read_classifier(str(tmp_path / "run"), tokenizer, torch.float64))
    torch.testing.assert_close(numbers(ours), expected)
    with pytest.raises(ValueError, match="is no language model: its adapters are a reward model's"):
        read_causal_lm(str(tmp_path / "run"), tokenizer, torch.float32)


def test_adapters_of_adapters_are_added_up(base: Path, tokenizer: Any, tmp_path: Path) -> None:
    """Supervised adapters first, a policy's on top of them."""
    first = adapted(loaded(base, tokenizer))
    save_adapter(first, first.state_dict().items(), tokenizer, tmp_path / "first" / "adapter")
    second = loaded(tmp_path / "first", tokenizer)
    torch.testing.assert_close(numbers(second), numbers(first))
    adapted(second, seed=9, rank=3)
    save_adapter(second, second.state_dict().items(), tokenizer, tmp_path / "second" / "adapter")
    both = loaded(tmp_path / "second", tokenizer)
    torch.testing.assert_close(numbers(both), numbers(second))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "does not say which model its adapters are for"),
        ('{"peft_type": "LORA"}', "does not say which model its adapters are for"),
        ('{"base_model_name_or_path": "runs/gone/model"}', "runs/gone/model does not exist"),
    ],
)
def test_a_damaged_folder_of_adapters_is_refused(
    content: str, message: str, tokenizer: Any, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        read_causal_lm(str(tmp_path), tokenizer, torch.float32)
    assert "\n" not in str(caught.value)


def test_missing_weights_of_adapters_are_refused(base: Path, tokenizer: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    actor = adapted(loaded(base, tokenizer))
    save_adapter(actor, actor.state_dict().items(), tokenizer, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    del weights[min(weights)]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match="weights of adapters are missing"):
        read_causal_lm(str(tmp_path), tokenizer, torch.float32)


def test_a_policy_samples_with_its_adapters(base: Path, tokenizer: Any) -> None:
    """Greedy tokens have the log-probs that the scorer gives them, and are others without the adapters."""
    from rlhf.batch import PromptBatch
    from rlhf.rollout.decoding import Sampling
    from rlhf.rollout.sampler import Sampler

    actor = adapted(loaded(base, tokenizer, packed=True)).eval()
    number = torch.arange(2)
    prompts = PromptBatch(tokens=TOKENS, mask=MASK, index=number, group=number)
    sampler = Sampler(decoding=Sampling(max_new_tokens=8), end_ids=[1], pad_id=2)
    noise = torch.rand(2, 8, generator=seeded(3), dtype=torch.float64)
    rollout = sampler.sample(actor, prompts, noise)
    scored = actor(rollout.tokens, rollout.attention_mask, 5).logprobs
    torch.testing.assert_close(scored, rollout.sampler_logprobs.to(scored.dtype))
    with without_adapters(actor):
        other = sampler.sample(actor, prompts, noise)
    assert other.tokens.tolist() != rollout.tokens.tolist()
