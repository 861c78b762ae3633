from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from rlhf.batch import Rollout, SequenceBatch
from rlhf.models.actor import Actor
from rlhf.models.frozen import frozen
from rlhf.rewards.implicit import ImplicitReward
from tests.trainers import toy

NO_TEXTS: Any = None
ROWS = [([3, 4], [5, 6, 1]), ([7], [8]), ([3, 4, 5, 6], [1]), ([9], [10, 9, 8, 1])]


@pytest.fixture(scope="module")
def models() -> tuple[Actor, Actor]:
    return frozen(toy.actor().double()), frozen(toy.actor("other").double())


def by_hand(actor: Actor, prompt: list[int], response: list[int]) -> float:
    """Σₜ log softmax of transformers' own logits, token by token, without padding or batch."""
    total = 0.0
    for place in range(len(response)):
        logits = actor.model(input_ids=torch.tensor([prompt + response[:place]])).logits[0, -1].double()
        total += float(logits[response[place]] - logits.logsumexp(0))
    return total


def rollout() -> Rollout:
    """Prompts padded on the left, responses on the right; padding is nothing in particular."""
    P, T = (max(len(row[side]) for row in ROWS) for side in (0, 1))
    tokens = [[2] * (P - len(p)) + p + r + [2] * (T - len(r)) for p, r in ROWS]
    prompts, responses = (torch.tensor([[len(row[side])] for row in ROWS]) for side in (0, 1))
    return Rollout(
        tokens=torch.tensor(tokens),
        prompt_mask=torch.arange(P) >= P - prompts,
        mask=torch.arange(T) < responses,
        ended=torch.ones(len(ROWS), dtype=torch.bool),
        sampler_logprobs=torch.zeros(len(ROWS), T),
        index=torch.arange(len(ROWS)),
        group=torch.arange(len(ROWS)),
    )


def sequences() -> SequenceBatch:
    texts = [prompt + response for prompt, response in ROWS]
    width = max(map(len, texts))
    attention = torch.arange(width) < torch.tensor([[len(text)] for text in texts])
    return SequenceBatch(
        tokens=torch.tensor([text + [2] * (width - len(text)) for text in texts]),
        attention_mask=attention,
        mask=attention & (torch.arange(width) >= torch.tensor([[len(prompt)] for prompt, _ in ROWS])),
    )


@pytest.mark.parametrize("micro_rows", [1, 3, 8])
def test_the_score_is_beta_times_the_summed_log_ratio(models: tuple[Actor, Actor], micro_rows: int) -> None:
    policy, reference = models
    reward = ImplicitReward(policy=policy, reference=reference, beta=0.3, micro_rows=micro_rows)
    expected = torch.tensor([0.3 * (by_hand(policy, *row) - by_hand(reference, *row)) for row in ROWS])
    assert float(expected.abs().min()) > 1e-4
    found = reward(rollout(), NO_TEXTS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    decoder: PreTrainedTokenizerBase = NO_TEXTS
    torch.testing.assert_close(reward.sequences(sequences(), decoder), expected)


def test_a_policy_beside_itself_is_a_reward_of_zero(models: tuple[Actor, Actor]) -> None:
    reward = ImplicitReward(policy=models[0], reference=models[0], beta=0.1, micro_rows=4)
    assert reward(rollout(), NO_TEXTS).tolist() == [0.0] * len(ROWS)
