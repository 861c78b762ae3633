from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlhf.batch import PromptBatch, Rollout
from rlhf.models.actor import Actor
from rlhf.rollout.decoding import Decoding, Greedy, Sampling
from rlhf.rollout.sampler import Sampler

PAD = 999
Build, Prompts, Noise = Callable[..., Actor], Callable[..., PromptBatch], Callable[..., torch.Tensor]
ROWS = ([3, 4], [5, 6, 7, 8, 9], [10, 3, 2])


def sampler(decoding: Decoding | None = None, ends: tuple[int, ...] = (1,)) -> Sampler:
    return Sampler(decoding=decoding or Sampling(max_new_tokens=12), end_ids=ends, pad_id=PAD)


def test_logprobs_are_those_of_the_scorer(build: Build, kind: str, prompts: Prompts, noise: Noise) -> None:
    """Numerics D10 and D15: one policy, left padding, a temperature, rows that end at different times."""
    actor = build(kind)
    rollout = sampler(Sampling(max_new_tokens=12, temperature=0.7)).sample(
        actor, prompts(*ROWS), noise(3, 12)
    )
    scored = actor(rollout.tokens, rollout.attention_mask, 5, 0.7).logprobs
    torch.testing.assert_close(rollout.sampler_logprobs, scored, rtol=0, atol=1e-5)
    assert (rollout.sampler_logprobs[rollout.mask] < 0).all()


def test_greedy_tokens_are_the_argmax_of_a_teacher_forced_forward(
    build: Build, kind: str, prompts: Prompts, noise: Noise
) -> None:
    actor = build(kind)
    rollout = sampler(Greedy(max_new_tokens=12)).sample(actor, prompts(*ROWS), noise(3, 12))
    best = actor.logits(rollout.tokens, rollout.attention_mask, 5).argmax(2)
    assert torch.equal(best[rollout.mask], rollout.responses[rollout.mask])
    assert len(rollout.responses.unique()) > 4  # no endless repetition, which would prove little


@pytest.mark.parametrize("end", [1, 6, 8])
def test_greedy_equals_generate_of_transformers(
    build: Build, kind: str, prompts: Prompts, noise: Noise, end: int
) -> None:
    actor, batch = build(kind), prompts(*ROWS)
    rollout = sampler(Greedy(max_new_tokens=12), (end,)).sample(actor, batch, noise(3, 12))
    generated = actor.model.generate(
        batch.tokens.masked_fill(~batch.mask, 0),
        attention_mask=batch.mask.long(),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=0,
    )[:, 5:]
    assert torch.equal(rollout.responses.masked_fill(~rollout.mask, 0), generated)


def test_the_mask_reaches_the_first_end_token_and_pad_follows(
    build: Build, prompts: Prompts, noise: Noise
) -> None:
    rows = [[3, 4]] * 64
    rollout = sampler(Sampling(max_new_tokens=8)).sample(build("llama"), prompts(*rows), noise(64, 8))
    lengths = set()
    for tokens, mask, ended in zip(rollout.responses.tolist(), rollout.mask, rollout.ended, strict=True):
        length = tokens.index(1) + 1 if 1 in tokens else len(tokens)
        assert mask.tolist() == [t < length for t in range(len(tokens))]
        assert all(token == PAD for token in tokens[length:])
        assert bool(ended) == (1 in tokens)
        lengths.add(length)
    assert len(lengths) > 3
    assert (rollout.sampler_logprobs[~rollout.mask] == 0).all()


def test_an_end_token_in_the_last_column_ends_the_response(
    build: Build, prompts: Prompts, noise: Noise
) -> None:
    actor, batch = build("gpt2"), prompts([3, 4])
    four = Sampling(max_new_tokens=4)
    free = sampler(four, ends=(998,)).sample(actor, batch, noise(1, 4))
    last = int(free.responses[0, 3])
    assert last not in free.responses[0, :3]
    rollout = sampler(four, ends=(last,)).sample(actor, batch, noise(1, 4))
    assert rollout.ended.tolist() == [True]
    assert rollout.mask.tolist() == [[True] * 4]
    assert free.ended.tolist() == [False]


def test_the_rollout_is_as_long_as_its_longest_response(build: Build, prompts: Prompts, noise: Noise) -> None:
    actor, batch = build("gpt2"), prompts([3, 4])
    first = int(sampler(Greedy(max_new_tokens=1), (998,)).sample(actor, batch, noise(1, 1)).responses[0, 0])
    rollout = sampler(Greedy(max_new_tokens=9), (first,)).sample(actor, batch, noise(1, 9))
    assert rollout.responses.tolist() == [[first]]


def test_the_first_token_has_its_exact_frequency(build: Build, prompts: Prompts) -> None:
    """Numerics D13: through the model, from a vocabulary of five, the end token among them."""
    actor, n = build("llama", vocabulary=5), 20_000
    batch = prompts([2, 3])
    exact = actor.logits(torch.tensor([[2, 3, 0]]), torch.ones(1, 3, dtype=torch.bool), 2)[0, 0]
    expected = n * (exact.double() / 0.8).softmax(0)
    draws = sampler(Sampling(max_new_tokens=1, temperature=0.8))
    many = batch.rows(torch.zeros(n, dtype=torch.int64))
    noise = torch.rand(n, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rollout = draws.sample(actor, many, noise)
    counts = torch.bincount(rollout.responses[:, 0], minlength=5)
    assert ((counts - expected) ** 2 / expected).sum() < 13.277  # χ² with four degrees, 0.99 quantile
    assert int(rollout.ended.sum()) == int(counts[1])


def test_sequences_have_the_probability_that_their_logprobs_say(build: Build, prompts: Prompts) -> None:
    """Ends included: the mean of 1/π over draws is the number of possible outcomes (1 + 4 + 16 = 21)."""
    actor, n = build("gpt2", vocabulary=5), 20_000
    many = prompts([2, 3]).rows(torch.zeros(n, dtype=torch.int64))
    noise = torch.rand(n, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rollout = sampler(Sampling(max_new_tokens=2, temperature=3.0)).sample(actor, many, noise)
    inverse = (-rollout.sampler_logprobs.sum(1)).exp()
    outcomes = 1 + 4 * 5  # the end at once, or one of four tokens and any of five
    assert abs(inverse.mean() - outcomes) < 4 * inverse.std() / n**0.5


def test_a_row_does_not_depend_on_the_others(build: Build, kind: str, prompts: Prompts, noise: Noise) -> None:
    actor, numbers = build(kind), noise(3, 12)
    whole = sampler().sample(actor, prompts(*ROWS), numbers)
    for row, prompt in enumerate(ROWS):
        alone = sampler().sample(actor, prompts(prompt), numbers[row : row + 1])
        assert alone.responses[0].tolist() == whole.responses[row, : whole.lengths[row]].tolist()


def test_other_noise_gives_other_responses(build: Build, prompts: Prompts, noise: Noise) -> None:
    actor, batch = build("gpt2"), prompts(*ROWS)
    first, again, other = (sampler().sample(actor, batch, noise(3, 12, seed)) for seed in (0, 0, 1))
    assert torch.equal(first.tokens, again.tokens)
    assert first.tokens.tolist() != other.tokens.tolist()


def test_index_group_and_prompts_are_handed_on(build: Build, prompts: Prompts, noise: Noise) -> None:
    batch = prompts(*ROWS)
    rollout = sampler().sample(build("gpt2"), batch, noise(3, 12))
    assert isinstance(rollout, Rollout)
    assert torch.equal(rollout.tokens[:, :5], batch.tokens)
    assert torch.equal(rollout.prompt_mask, batch.mask)
    assert torch.equal(rollout.index, batch.index)
    assert torch.equal(rollout.group, batch.group)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_left_as_it_was_and_no_gradient_flows(
    build: Build, prompts: Prompts, noise: Noise, training: bool
) -> None:
    actor = build("gpt2").train(training)
    actor.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch, greedy = prompts(*ROWS), sampler(Greedy(max_new_tokens=12))
    rollout = greedy.sample(actor, batch, noise(3, 12))
    assert actor.training == training
    assert not rollout.sampler_logprobs.requires_grad
    assert torch.equal(rollout.tokens, greedy.sample(build("gpt2"), batch, noise(3, 12)).tokens)


def test_rows_that_ended_early_stop_the_loop(build: Build, prompts: Prompts, noise: Noise) -> None:
    actor: Any = build("gpt2")
    steps: list[int] = []
    actor.head.register_forward_pre_hook(lambda *_: steps.append(1))
    ends = tuple(range(11))  # every token ends
    rollout = sampler(Sampling(max_new_tokens=12), ends).sample(actor, prompts(*ROWS), noise(3, 12))
    assert len(steps) == 1
    assert rollout.mask.tolist() == [[True]] * 3


def test_no_room_in_the_context_is_refused_and_the_last_place_is_used(
    build: Build, kind: str, prompts: Prompts, noise: Noise
) -> None:
    fits = sampler(Greedy(max_new_tokens=3), (998,))
    rollout = fits.sample(build(kind, context=8), prompts(*ROWS), noise(3, 3))
    assert rollout.responses.shape == (3, 3)
    with pytest.raises(ValueError, match="a prompt of 5 and 3 new tokens exceed the context of 7 positions"):
        fits.sample(build(kind, context=7), prompts(*ROWS), noise(3, 3))


def test_left_padding_takes_no_room(build: Build, prompts: Prompts, noise: Noise) -> None:
    batch = prompts([3, 4, 5, 6, 7], [3, 4]).rows(torch.tensor([1]))  # two tokens in five columns
    assert (
        sampler(Greedy(max_new_tokens=4), (998,))
        .sample(build("gpt2", context=6), batch, noise(1, 4))
        .mask.all()
    )


def test_wrong_noise_and_empty_prompts_are_refused(build: Build, prompts: Prompts, noise: Noise) -> None:
    batch = prompts(*ROWS)
    with pytest.raises(ValueError, match=r"noise has shape \(3, 11\), expected \(3, 12\)"):
        sampler().sample(build("gpt2"), batch, noise(3, 11))
    batch.mask[1] = False
    with pytest.raises(ValueError, match="every prompt needs a token in its last column"):
        sampler().sample(build("gpt2"), batch, noise(3, 12))


def test_end_tokens_are_needed_and_pad_is_none_of_them() -> None:
    for ends in ((), (1, PAD)):
        with pytest.raises(ValueError, match=r"Sampler\.end_ids must hold an end token and not PAD"):
            sampler(ends=ends)


def test_greedy_responses_have_no_temperature_to_train_at() -> None:
    assert sampler(Sampling(temperature=0.7)).temperature == 0.7
    with pytest.raises(ValueError, match="Greedy has no temperature; training needs Sampling"):
        _ = sampler(Greedy()).temperature
