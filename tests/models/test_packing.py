"""Rows end to end against the same rows side by side, in float64: log-probs, values, gradients."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen3NextConfig,
)

from rlhf.models import beginnings, packing
from rlhf.models.actor import Actor
from rlhf.models.loading import expect_rows_apart, load_actor
from rlhf.models.packing import Packed, pack, unpacked
from rlhf.models.scalar import ScalarModel
from rlhf.models.sources import TinyLlama

EXACT = {"rtol": 0, "atol": 1e-12}
SIZES: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 11}
SIZES |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "initializer_range": 0.3, "head_dim": 4}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 40}


def rows() -> tuple[Tensor, Tensor]:
    """Five rows: whole, padded on both sides, of one token, right-padded, left-padded."""
    tokens = torch.randint(0, 11, (5, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(5, 9, dtype=torch.bool)
    for row, (start, end) in enumerate([(0, 9), (3, 7), (2, 3), (0, 5), (4, 9)]):
        mask[row, start:end] = True
    return tokens, mask


def rows_that_begin_alike() -> tuple[Tensor, Tensor]:
    """Seven rows, padded on either side: three begin alike, two are equal, one is without a token."""
    tokens = torch.randint(0, 11, (7, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(7, 9, dtype=torch.bool)
    starts, ends = (0, 3, 2, 1, 0, 0, 1), (9, 9, 8, 9, 0, 8, 9)
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        mask[row, start:end] = True
    for row in (1, 2):
        tokens[row, starts[row] : starts[row] + SAME] = tokens[0, :SAME]
    tokens[6, 1:9] = tokens[5, :8]
    return tokens, mask


SAME = 4


@pytest.fixture(autouse=True)
def short_beginnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nine tokens are enough for rows that begin alike."""
    monkeypatch.setattr(beginnings, "LEAST", SAME - 1)


def other_models() -> Iterator[Any]:
    yield pytest.param(MistralConfig(sliding_window=3, **SIZES), id="sliding window")
    yield pytest.param(LlamaConfig(**SIZES), id="grouped heads")


def causal(config: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config)


def pair(model: Callable[[], Any], *, checkpointing: bool = False, wrapper: Any = Actor) -> list[Any]:
    """The same model with padding and without, in float64."""
    return [
        wrapper(model().double(), gradient_checkpointing=checkpointing, packed=packed).train()
        for packed in (False, True)
    ]


def outcome(model: Any, first: int, given: Callable[[], tuple[Tensor, Tensor]] = rows) -> list[Tensor]:
    """What it says of the rows, and every gradient of a weighted sum of it."""
    tokens, mask = given()
    weights = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = model(tokens, mask, first)
    columns = [found] if isinstance(found, Tensor) else list(found)
    torch.stack([(column * weights[:, first:]).sum() for column in columns]).sum().backward()
    return [column.detach() for column in columns] + [weight.grad for weight in model.parameters()]


@pytest.mark.parametrize(("first", "checkpointing"), [(1, False), (1, True), (4, False)])
@pytest.mark.parametrize("wrapper", [Actor, ScalarModel])
def test_results_and_gradients_are_those_of_padded_rows(
    build: Callable[..., Any], kind: str, wrapper: Any, first: int, checkpointing: bool
) -> None:
    models = pair(
        lambda: build(kind, classifier=wrapper is ScalarModel), checkpointing=checkpointing, wrapper=wrapper
    )
    padded, packed = (outcome(model, first) for model in models)
    torch.testing.assert_close(packed, padded, **EXACT)


@pytest.mark.parametrize("config", other_models())
def test_windows_and_grouped_heads_are_kept(config: Any) -> None:
    padded, packed = (outcome(model, 1) for model in pair(lambda: causal(config)))
    torch.testing.assert_close(packed, padded, **EXACT)


def alike(packed: list[Tensor], padded: list[Tensor], found: int, *, exact: bool) -> None:
    """``found`` results, and then gradients: Llama's norms sum a token's gradients in float32."""
    torch.testing.assert_close(packed[:found], padded[:found], **EXACT)
    torch.testing.assert_close(packed[found:], padded[found:], rtol=0, atol=1e-12 if exact else 3e-5)


@pytest.mark.parametrize("config", other_models())
def test_windows_and_grouped_heads_are_kept_where_rows_begin_alike(config: Any) -> None:
    padded, packed = (outcome(model, 1, rows_that_begin_alike) for model in pair(lambda: causal(config)))
    alike(packed, padded, 2, exact=False)


@pytest.mark.parametrize(("first", "checkpointing"), [(1, False), (1, True), (3, False)])
@pytest.mark.parametrize("wrapper", [Actor, ScalarModel])
def test_a_common_beginning_is_run_once_with_the_same_results_and_gradients(
    build: Callable[..., Any], kind: str, wrapper: Any, first: int, checkpointing: bool
) -> None:
    models = pair(
        lambda: build(kind, classifier=wrapper is ScalarModel), checkpointing=checkpointing, wrapper=wrapper
    )
    padded, packed = (outcome(model, first, rows_that_begin_alike) for model in models)
    alike(packed, padded, 1 if wrapper is ScalarModel else 2, exact=kind == "gpt2")


def test_what_is_common_does_not_reach_the_model_again() -> None:
    tokens, mask = rows_that_begin_alike()
    packed = Packed.of(tokens, mask)
    assert packed.tokens.shape[1] == int(mask.sum()) - 2 * SAME - 7
    found = packed.tokens[0][packed.place]
    assert torch.equal(found, tokens[mask])
    assert torch.equal(packed.positions[0][packed.place], (mask.long().cumsum(1) - 1)[mask])


def test_in_float32_rounding_alone_differs(build: Callable[..., Any], kind: str) -> None:
    padded, packed = (Actor(build(kind), packed=packed)(*rows(), 1) for packed in (False, True))
    torch.testing.assert_close(packed, padded, rtol=0, atol=1e-5)


def test_full_logits_come_with_the_same_log_probs(build: Callable[..., Any], kind: str) -> None:
    padded, packed = pair(lambda: build(kind))
    full = packed(*rows(), 2, 0.7, full=True)
    torch.testing.assert_close(full, padded(*rows(), 2, 0.7, full=True), **EXACT)
    assert torch.equal(full.logprobs, packed(*rows(), 2, 0.7).logprobs)


def test_the_model_sees_real_tokens_alone_with_positions_from_0(build: Callable[..., Any], kind: str) -> None:
    seen: list[dict[str, Any]] = []
    actor = Actor(build(kind), packed=True)
    actor.model.base_model.register_forward_pre_hook(lambda *call: seen.append(call[2]), with_kwargs=True)
    tokens, mask = rows()
    actor(tokens, mask, 1)
    assert seen[0]["input_ids"].tolist() == [tokens[mask].tolist()]
    counted = [*range(9), *range(4), 0, *range(5), *range(5)]
    assert seen[0]["position_ids"].tolist() == [counted]


def test_only_scored_positions_reach_the_head(build: Callable[..., Any], kind: str) -> None:
    seen: list[tuple[int, ...]] = []
    actor = Actor(build(kind), packed=True)
    actor.head.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    actor(*rows(), 4)
    assert seen == [(5 + 3 + 0 + 1 + 4, 16)]


def test_no_mask_of_all_tokens_by_all_tokens_is_built(
    build: Callable[..., Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "sdpa_mask", lambda *_, **__: pytest.fail("a mask was built"))
    Actor(build(kind), packed=True)(*rows(), 1)


def test_the_sampler_gets_the_same_logits_from_either_layout(build: Callable[..., Any], kind: str) -> None:
    tokens, mask = rows()
    tokens, mask = tokens[[0, 4]], mask[[0, 4]]
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    found = []
    for actor in pair(lambda: build(kind)):
        actor.eval()
        first, cache = actor.next_logits(tokens[:, :7], mask[:, :7], positions[:, :7])
        second, _ = actor.next_logits(tokens[:, 7:], mask, positions[:, 7:], cache)
        found.append((first, second))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_a_row_without_a_token_holds_zeros(build: Callable[..., Any], kind: str) -> None:
    tokens, mask = rows()
    mask[2] = False
    scored = Actor(build(kind), packed=True)(tokens, mask, 1)
    assert (scored.logprobs[2] == 0).all()
    torch.testing.assert_close(scored, Actor(build(kind))(tokens, mask, 1), rtol=0, atol=1e-5)


def test_unpacked_values_stand_where_the_mask_is_true() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    assert unpacked(torch.tensor([1.0, 2.0, 3.0]), mask).tolist() == [[1.0, 0.0], [2.0, 3.0]]
    assert unpacked(torch.ones(3, 4), mask).shape == (2, 2, 4)


def test_states_stand_row_after_row(build: Callable[..., Any], kind: str) -> None:
    tokens, mask = rows()
    model = build(kind).double()
    alone = [
        model.base_model(input_ids=tokens[i, mask[i]].unsqueeze(0)).last_hidden_state[0] for i in range(5)
    ]
    pack(model)
    packed = Packed.of(tokens, mask)
    torch.testing.assert_close(packed.states(model)[packed.place], torch.cat(alone), **EXACT)


def test_the_exported_configuration_does_not_name_our_attention(build: Callable[..., Any], kind: str) -> None:
    assert packing.NAME not in Actor(build(kind), packed=True).model.config.to_json_string(use_diff=False)


def test_other_attention_is_refused() -> None:
    model = causal(Gemma2Config(**SIZES))
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match=r"Gemma2ForCausalLM has eager attention, .* packed=false"):
        Actor(model, packed=True)


def test_recurrent_layers_are_refused(build: Callable[..., Any]) -> None:
    model = build("llama")
    model.config.layer_types = Qwen3NextConfig().layer_types
    with pytest.raises(ValueError, match=r"LlamaForCausalLM has layers of linear_attention, .* packed=false"):
        Actor(model, packed=True)


def test_a_model_whose_rows_meet_is_refused_at_loading(build: Callable[..., Any], kind: str) -> None:
    actor = Actor(build(kind), packed=True)
    expect_rows_apart(actor, "this")
    actor.model.base_model.register_forward_pre_hook(_without_bounds, with_kwargs=True)
    with pytest.raises(ValueError, match=r"this: rows of .* end to end differ from single ones by .*"):
        expect_rows_apart(actor, "this")


def _without_bounds(_: nn.Module, arguments: Any, named: dict[str, Any]) -> Any:
    """A model that drops what it does not know."""
    return arguments, {name: value for name, value in named.items() if name != "packed_rows"}


def test_loading_compares_packed_logits_with_the_models_own(tokenizer: PreTrainedTokenizerFast) -> None:
    source = TinyLlama(layers=1, hidden=16, heads=2, intermediate=16)
    assert load_actor(source, tokenizer, generator=torch.Generator(), packed=True).packed


@pytest.mark.gpu
@pytest.mark.parametrize("config", other_models())
def test_the_kernel_for_rows_of_any_length_agrees_with_padding(config: Any) -> None:
    config.head_dim = 16  # the kernel takes multiples of 8
    tokens, mask = (part.cuda() for part in rows())
    padded, packed = (
        Actor(causal(copy.deepcopy(config)), packed=packed)
        .to("cuda", torch.bfloat16)(tokens, mask, 1)
        .logprobs
        for packed in (False, True)
    )
    torch.testing.assert_close(packed, padded, rtol=0.05, atol=0.1)
