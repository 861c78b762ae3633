"""Two policies that write together: whoever's turn it is draws, and both read everything."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlhf.batch import PromptBatch
from rlhf.models.actor import Actor
from rlhf.rollout.decoding import Sampling
from rlhf.rollout.sampler import Sampler

PAD = 999
Build, Prompts, Noise = Callable[..., Actor], Callable[..., PromptBatch], Callable[..., torch.Tensor]
ROWS = ([3, 4], [5, 6, 7, 8, 9], [10, 3, 2])
T = 12


def sampler(**changes: Any) -> Sampler:
    decoding = Sampling(max_new_tokens=T, temperature=0.7)
    return Sampler(**({"decoding": decoding, "end_ids": (1,), "pad_id": PAD} | changes))


@pytest.fixture(params=[False, True], ids=["padded", "packed"])
def both(build: Build, request: pytest.FixtureRequest) -> tuple[Actor, Actor]:
    """Two models, one with weights of its own."""
    first, second = build("llama", packed=request.param), build("llama", packed=request.param)
    generator = torch.Generator().manual_seed(1)
    for parameter in second.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return first, second


@pytest.mark.parametrize("turn", [0, 1])
def test_a_policy_whose_turn_it_always_is_writes_as_if_alone(
    both: tuple[Actor, Actor], prompts: Prompts, noise: Noise, turn: int
) -> None:
    turns = torch.full((3, T), bool(turn))
    batch, numbers = prompts(*ROWS), noise(3, T)
    together = sampler().sample_from_both(*both, batch, numbers, turns)
    alone = sampler().sample(both[turn], batch, numbers)
    assert torch.equal(together.tokens, alone.tokens)
    assert torch.equal(together.mask, alone.mask)
    assert torch.equal(together.ended, alone.ended)
    torch.testing.assert_close(together.sampler_logprobs, alone.sampler_logprobs, rtol=0, atol=1e-5)


def test_each_token_is_scored_by_the_policy_that_drew_it(
    both: tuple[Actor, Actor], prompts: Prompts, noise: Noise
) -> None:
    turns = noise(3, T, seed=5) < 0.5
    rollout = sampler().sample_from_both(*both, prompts(*ROWS), noise(3, T), turns)
    own, others = (actor(rollout.tokens, rollout.attention_mask, 5, 0.7).logprobs for actor in both)
    expected = torch.where(turns[:, : own.shape[1]], others, own)
    mask = rollout.mask
    torch.testing.assert_close(rollout.sampler_logprobs[mask], expected[mask], rtol=0, atol=1e-5)
    assert (own - others).abs()[mask].max() > 0.1  # else it would not matter


def test_memory_cuts_the_rows_and_changes_no_token(
    both: tuple[Actor, Actor], prompts: Prompts, noise: Noise
) -> None:
    turns = noise(3, T, seed=5) < 0.5
    batch, numbers = prompts(*ROWS), noise(3, T)
    whole = sampler().sample_from_both(*both, batch, numbers, turns)
    memory = 1 << 30
    while sampler(memory=memory)._half(both[0], batch) > 2:
        memory //= 2
    assert sampler(memory=memory)._half(both[0], batch) >= 1
    parts = sampler(memory=memory).sample_from_both(*both, batch, numbers, turns)
    assert torch.equal(parts.tokens, whole.tokens)
