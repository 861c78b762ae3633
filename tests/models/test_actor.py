import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlhf.models.actor import Actor
from rlhf.ops.logprobs import TokenLogprobs

TOKENS = torch.tensor([[3, 4, 5, 6, 7, 1], [8, 3, 9, 10, 4, 5]])
REAL = torch.ones_like(TOKENS, dtype=torch.bool)


def left_padded(pads: int) -> tuple[Tensor, Tensor]:
    fill = TOKENS.new_full((2, pads), 2)
    return torch.cat([fill, TOKENS], 1), torch.cat([torch.zeros_like(fill, dtype=torch.bool), REAL], 1)


def ragged() -> tuple[Tensor, Tensor]:
    """One row padded on the left, one on both sides, one that is padding altogether."""
    tokens = torch.cat([TOKENS, TOKENS[:1]])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, :2] = False
    mask[1, 0] = mask[1, 5] = False
    mask[2] = False
    return tokens, mask


def test_logprob_is_the_log_softmax_of_the_column_before(
    build: Callable[..., Any], kind: str, tied: bool
) -> None:
    model = build(kind, tied=tied)
    logits = model(TOKENS).logits.double()  # before the head is swapped
    for first in (1, 3, 5):
        expected = (
            (logits[:, first - 1 : -1] / 0.7).log_softmax(-1).gather(2, TOKENS[:, first:, None]).squeeze(2)
        )
        scored = Actor(copy.deepcopy(model))(TOKENS, REAL, first, 0.7)
        torch.testing.assert_close(scored.logprobs.double(), expected, rtol=0, atol=1e-5)


def test_entropy_is_that_of_the_same_distribution(actor: Actor) -> None:
    p = (actor.model(TOKENS).logits[:, 2:-1] / 0.7).softmax(-1)
    torch.testing.assert_close(
        actor(TOKENS, REAL, 3, 0.7).entropies, -(p * p.log()).sum(-1), rtol=0, atol=1e-5
    )


def test_one_token_at_a_time_gives_the_same(actor: Actor) -> None:
    whole = actor(TOKENS, REAL, 1).logprobs
    for end in range(2, 7):
        part = actor(TOKENS[:, :end], REAL[:, :end], end - 1).logprobs
        torch.testing.assert_close(part.squeeze(1), whole[:, end - 2], rtol=0, atol=1e-5)


def test_changing_token_t_changes_no_earlier_logprob(actor: Actor) -> None:
    changed = TOKENS.clone()
    changed[:, 3] = 9
    before, after = (actor(tokens, REAL, 1).logprobs for tokens in (TOKENS, changed))
    torch.testing.assert_close(before[:, :2], after[:, :2], rtol=0, atol=1e-6)  # tokens 1 and 2
    assert ((before - after)[:, 2:].abs() > 1e-4).all()  # token 3 itself, and all that read it


@pytest.mark.parametrize("pads", [3, 17])
def test_left_pads_change_no_logprob(actor: Actor, pads: int) -> None:
    tokens, mask = left_padded(pads)
    expected = actor(TOKENS, REAL, 2).logprobs
    torch.testing.assert_close(actor(tokens, mask, 2 + pads).logprobs, expected, rtol=0, atol=1e-5)


def test_without_explicit_positions_left_pads_move_absolute_ones(build: Callable[..., Any]) -> None:
    model = build("gpt2")
    tokens, mask = left_padded(3)
    moved = model(tokens, attention_mask=mask.long()).logits[:, 3:] - model(TOKENS).logits
    assert moved.abs().max() > 1e-2  # so the test above can fail


def test_right_pads_and_batch_mates_change_no_logprob(actor: Actor) -> None:
    tokens, mask = torch.cat([TOKENS, TOKENS[:, :3]], 1), torch.cat([REAL, ~REAL[:, :3]], 1)
    scored = actor(tokens, mask, 2).logprobs
    torch.testing.assert_close(scored[1:, :4], actor(TOKENS[1:], REAL[1:], 2).logprobs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fill", [2, 999, -100])
def test_what_stands_on_padding_is_not_read(actor: Actor, fill: int) -> None:
    tokens, mask = ragged()
    clean, filled = actor(tokens, mask, 2), actor(tokens.masked_fill(~mask, fill), mask, 2)
    assert torch.equal(clean.logprobs, filled.logprobs)
    assert torch.equal(clean.entropies, filled.entropies)


def test_masked_positions_hold_zero_and_send_no_gradient(actor: Actor) -> None:
    tokens, mask = ragged()
    scored = actor(tokens, mask, 2)
    for values in scored:
        assert (values[~mask[:, 2:]] == 0).all()
        assert (values[mask[:, 2:] & mask[:, 1:-1]] != 0).all()
        assert (
            values[mask[:, 2:] & ~mask[:, 1:-1]] == 0
        ).all()  # a row's first token, which nothing precedes
    scored.logprobs[~mask[:, 2:]].sum().backward()
    assert all((weight.grad == 0).all() for weight in actor.parameters() if weight.grad is not None)


def test_gradients_are_finite_with_padding_on_both_sides_and_a_masked_row(actor: Actor) -> None:
    tokens, mask = ragged()
    sum(values.sum() for values in actor(tokens, mask, 2)).backward()
    assert all(weight.grad.isfinite().all() for weight in actor.parameters())


def test_logits_are_those_that_the_logprobs_come_from(actor: Actor) -> None:
    tokens, mask = ragged()
    logits = actor.logits(tokens, mask, 2)
    assert logits.shape == (3, 4, 11)
    real = mask[:, 2:] & mask[:, 1:-1]
    expected = (logits / 0.7).log_softmax(-1).gather(2, tokens[:, 2:, None]).squeeze(2)
    torch.testing.assert_close(actor(tokens, mask, 2, 0.7).logprobs[real], expected[real], rtol=0, atol=1e-6)
    assert (logits[~real] == 0).all()


def test_probabilities_of_all_responses_sum_to_one(build: Callable[..., Any], kind: str) -> None:
    """Numerics D12: 341 outcomes of four content tokens, end token 4, at most four tokens."""
    model = Actor(build(kind, vocabulary=5, pad_token_id=None, eos_token_id=4))
    stopped = [(*words, 4) for n in range(4) for words in itertools.product(range(4), repeat=n)]
    responses = [*stopped, *itertools.product(range(4), repeat=4)]
    assert len(responses) == 341
    tokens, mask = torch.full((341, 8), 99), torch.zeros(341, 8, dtype=torch.bool)
    tokens[:, 2:4], mask[:, 2:4] = torch.tensor([1, 3]), True  # a prompt of two, two left pads
    for row, response in enumerate(responses):
        tokens[row, 4 : 4 + len(response)] = torch.tensor(response)
        mask[row, 4 : 4 + len(response)] = True
    total = model(tokens, mask, 4, 0.8).logprobs.sum(1).exp().sum()
    torch.testing.assert_close(total, torch.tensor(1.0), rtol=0, atol=1e-6)


def test_only_the_scored_positions_reach_the_head(actor: Actor) -> None:
    seen: list[tuple[int, ...]] = []
    actor.head.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    actor(TOKENS, REAL, 4)
    assert seen == [(4, 16)]


@pytest.mark.parametrize("full", [False, True])
def test_everything_runs_through_the_modules_call(actor: Actor, full: bool) -> None:
    calls: list[nn.Module] = []
    for module in (actor, actor.head):
        module.register_forward_pre_hook(lambda module, _: calls.append(module))
    actor.logits(TOKENS, REAL, 1) if full else actor(TOKENS, REAL, 1)
    assert calls == [actor, *[actor.head] * (1 + full)]  # where ZeRO-3's hooks gather the weights


def test_two_forwards_are_bitwise_equal_in_either_mode(actor: Actor) -> None:
    training, evaluating = actor.train()(TOKENS, REAL, 1), actor.eval()(TOKENS, REAL, 1)
    assert torch.equal(training.logprobs, evaluating.logprobs)


def test_checkpointing_changes_neither_logprobs_nor_gradients(build: Callable[..., Any], kind: str) -> None:
    plain, saving = Actor(build(kind)), Actor(build(kind), gradient_checkpointing=True)
    tokens, mask = ragged()
    results = []
    for model in (plain, saving):
        logprobs = model.train()(tokens, mask, 1).logprobs
        logprobs.sum().backward()
        results.append((logprobs, [weight.grad for weight in model.parameters()]))
    torch.testing.assert_close(results[0], results[1])


def test_bfloat16_weights_give_float32_results(build: Callable[..., Any], kind: str) -> None:
    scored = Actor(build(kind).to(torch.bfloat16))(TOKENS, REAL, 1)
    assert isinstance(scored, TokenLogprobs)
    assert {scored.logprobs.dtype, scored.entropies.dtype} == {torch.float32}


def test_names_and_tying_are_the_models_own(build: Callable[..., Any], kind: str, tied: bool) -> None:
    names = ["model." + name for name in build(kind, tied=tied).state_dict()]
    wrapped = Actor(build(kind, tied=tied))
    assert list(wrapped.state_dict()) == names
    for model in (wrapped, copy.deepcopy(wrapped)):  # the sampling copy under ZeRO-3
        assert (model.head.weight is model.model.get_input_embeddings().weight) == tied


def test_next_logits_over_a_cache_are_those_of_the_whole_row(actor: Actor) -> None:
    whole = actor.logits(TOKENS, REAL, 1)
    actor.eval()
    logits, cache = actor.next_logits(TOKENS[:, :3], REAL[:, :3], torch.arange(3).expand(2, 3))
    torch.testing.assert_close(logits, whole[:, 2], rtol=0, atol=1e-5)
    logits, cache = actor.next_logits(TOKENS[:, 3:4], REAL[:, :4], torch.full((2, 1), 3), cache)
    torch.testing.assert_close(logits, whole[:, 3], rtol=0, atol=1e-5)


@pytest.mark.parametrize("first", [0, 6])
def test_first_out_of_range_is_refused(actor: Actor, first: int) -> None:
    with pytest.raises(ValueError, match=r"first must lie in \[1, 6\)"):
        actor(TOKENS, REAL, first)


def test_a_model_without_positions_is_refused() -> None:
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=11, hidden_size=8, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="BloomForCausalLM takes no position_ids"):
        Actor(model)


def gradients(model: Actor) -> list[Tensor]:
    return [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in model.parameters()]


@pytest.mark.parametrize("packed", [False, True])
def test_one_sweep_gives_the_loss_and_gradients_of_two_passes(
    build: Callable[..., Any], kind: str, tied: bool, packed: bool
) -> None:
    """In float64: a clipped surrogate of the log-probs and a pull on the entropies."""
    tokens, mask = ragged()
    weights = torch.linspace(-1.0, 2.0, 12, dtype=torch.float64).reshape(3, 4)

    def loss(found: TokenLogprobs) -> Tensor:
        ratio = (found.logprobs + 2.4).exp()
        return -torch.minimum(ratio * weights, ratio.clamp(0.9, 1.1) * weights) - 0.1 * found.entropies

    two = Actor(build(kind, tied=tied).double(), packed=packed)
    one = copy.deepcopy(two)
    expected = two(tokens, mask, 2, 0.7)
    loss(expected).sum().backward()
    swept = one(tokens, mask, 2, 0.7, token_loss=loss)
    (4.0 * swept.loss).backward()  # a power of two scales float32 norms without rounding
    for found, right in zip(gradients(one), gradients(two), strict=True):
        torch.testing.assert_close(found, 4.0 * right, rtol=1e-12, atol=1e-14)
    for found, right in zip(swept[1:], (loss(expected), *expected), strict=True):
        assert not found.requires_grad
        real = mask[:, 2:] & mask[:, 1:-1]
        torch.testing.assert_close(found[real], right.detach()[real], rtol=1e-12, atol=0)
        assert (found[~real] == 0).all()


@pytest.mark.parametrize("packed", [False, True])
def test_unwanted_tokens_do_not_reach_the_head(build: Callable[..., Any], kind: str, packed: bool) -> None:
    actor = Actor(build(kind), packed=packed)
    tokens, mask = ragged()
    wanted = torch.tensor([[True, False, True, True], [False, True, True, True], [True] * 4])
    seen: list[int] = []
    actor.head.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    whole = actor(tokens, mask, 2)
    asked = actor(tokens, mask, 2, wanted=wanted)
    for found, right in zip(asked, whole, strict=True):
        torch.testing.assert_close(found[wanted], right[wanted], rtol=0, atol=1e-6)
        assert (found[~wanted] == 0).all()
    real = mask[:, 2:] & mask[:, 1:-1]
    assert seen == [int(real.sum()), int((real & wanted).sum())]
