"""Sizes are what they say, and an endless model does not end."""

import pytest
import torch

from benchmarks.cases.models import SMOL, TINY, TWO, Size, countdown, endless, tokens_left
from benchmarks.cases.rows import FIRST
from rlhf.batch import PromptBatch
from rlhf.models.actor import Actor
from rlhf.rollout.decoding import Sampling
from rlhf.rollout.noise import row_noise
from rlhf.rollout.sampler import Sampler


@pytest.mark.parametrize("size", [TINY, Size(layers=2, hidden=24, vocabulary=50, heads=6, kv_heads=2)])
def test_a_size_counts_its_matrices(size: Size) -> None:
    matrices = [part for part in size.causal_lm().parameters() if part.dim() > 1]
    assert sum(part.numel() for part in matrices) == size.weights


def test_the_135m_shape_has_134_million_weights() -> None:
    """Published: 134,515,008, of which 35,136 are norms'."""
    assert SMOL.weights == 134_515_008 - 61 * 576


def test_a_step_is_six_operations_a_weight_and_token_and_attention_grows_as_the_square() -> None:
    one = TINY.flops(torch.tensor([10]))
    assert one == 6 * TINY.weights * 10 + 6 * TINY.layers * TINY.hidden * 100
    assert TINY.flops(torch.tensor([10, 10])) == 2 * one


def test_an_endless_model_never_draws_the_first_tokens() -> None:
    model = endless(TWO.causal_lm())
    tokens = torch.randint(FIRST, TWO.vocabulary, (8, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        chances = model(tokens).logits.softmax(2)
    assert chances[:, :, :FIRST].sum(2).max() < 1e-5
    assert chances.sum(2).min() > 0.99


@pytest.mark.parametrize("size", [TINY, TWO])
def test_a_countdown_ends_as_its_prompt_says(size: Size) -> None:
    model, numbers = countdown(size.causal_lm(), 8), tokens_left(size.vocabulary, 8)
    assert sorted(set(numbers.tolist())) == list(range(-1, 9))
    actor = Actor(model)
    prompts = torch.randint(FIRST, size.vocabulary, (8, 5), generator=torch.Generator().manual_seed(0))
    for length in range(1, 9):
        prompts[length - 1, -1] = int((numbers == length).nonzero()[length])
    every = torch.ones_like(prompts, dtype=torch.bool)
    batch = PromptBatch(tokens=prompts, mask=every, index=torch.arange(8), group=torch.arange(8))
    sampler = Sampler(decoding=Sampling(max_new_tokens=12), end_ids=[1], pad_id=0)
    rollout = sampler.sample(actor, batch, row_noise(batch.group, 12, 0, "test"))
    assert rollout.ended.all()
    assert rollout.lengths.tolist() == list(range(1, 9))
    scored = actor(rollout.tokens, torch.cat([every, rollout.mask], 1), 5)
    torch.testing.assert_close(scored.logprobs, rollout.sampler_logprobs, rtol=0, atol=1e-4)
    longest = rollout.mask[-1]
    assert (scored.entropies[-1][longest][:-2] > 1.0).all()  # drawn from many tokens


def test_scores_of_a_reward_model_differ_by_about_one() -> None:
    model = TWO.classifier()
    tokens = torch.randint(FIRST, TWO.vocabulary, (64, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = model.model(tokens).last_hidden_state[:, -1]
        assert 0.3 < float(model.score(hidden).std()) < 3.0
