"""The tables are what they claim to be: the production wrappers say of them what enumeration says."""

import torch
from torch import Tensor

from rlhf.models.scalar import state_values
from tests.testbed import table
from tests.testbed.tree import Testbed


def texts(bed: Testbed, left: int) -> tuple[Tensor, Tensor]:
    """Every outcome behind the prompt, with ``left`` columns of padding before it."""
    padding = torch.full((341, left), bed.PAD)
    tokens = torch.cat([padding, torch.full((341, 1), table.PROMPT), bed.responses], 1)
    real = torch.cat([torch.zeros_like(padding).bool(), torch.ones(341, 1).bool(), bed.mask], 1)
    return tokens, real


def test_the_policy_scores_every_outcome_as_its_table_does(testbed: Testbed) -> None:
    expected = torch.where(testbed.mask, testbed.logprobs(testbed.ref_logits), 0.0).float()
    for left in (0, 2):
        tokens, real = texts(testbed, left)
        found = table.policy(testbed, testbed.ref_logits)(tokens, real, left + 1).logprobs
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_one_token_at_a_time_over_the_cache_gives_the_same_logits(testbed: Testbed) -> None:
    policy = table.policy(testbed, testbed.ref_logits)
    tokens, real = texts(testbed, 0)
    whole = policy.logits(tokens, real, 1)  # (341, T, 5)
    cache = None
    for t in range(testbed.T):
        inside = real[:, t]
        logits, cache = policy.next_logits(
            tokens[:, t : t + 1].masked_fill(~real[:, t : t + 1], 0),
            real[:, : t + 1],
            torch.full((341, 1), t),
            cache,
        )
        still = inside & testbed.mask[:, t]
        assert torch.equal(logits[still], whole[still, t])


def test_the_critic_reads_the_state_before_each_token(testbed: Testbed) -> None:
    critic = table.critic(testbed)
    critic.head.weight.data = torch.arange(85.0)[None]
    tokens, real = texts(testbed, 1)
    found = state_values(critic(tokens, real), 2, testbed.mask)
    assert torch.equal(found, torch.where(testbed.mask, testbed.states, 0).float())


def test_the_reward_model_knows_the_score_of_what_ended_and_nothing_else(testbed: Testbed) -> None:
    trainer = table.trainer(testbed, table.ppo(), updates=1)
    rollout = trainer.collector.sample(trainer.collector.prompts(trainer.state.drawn))
    scores = trainer.collector.score(rollout, trainer.train).scores
    numbers = testbed.index_of(rollout.responses)
    expected = torch.where(rollout.ended, testbed.r[numbers].float(), 99.0)
    assert torch.equal(scores, expected)
    assert 0 < rollout.ended.sum() < table.ROWS


def test_the_sampler_draws_every_outcome_as_often_as_the_policy_says(testbed: Testbed) -> None:
    """χ² of 5,120 responses over the outcomes that are expected five times or more, and the rest."""
    trainer = table.trainer(testbed, table.ppo(), updates=1)
    counts = torch.zeros(341, dtype=torch.float64)
    for rollout in range(20):
        trainer.state.drawn = rollout * table.ROWS // table.GROUP
        drawn = testbed.index_of(
            trainer.collector.sample(trainer.collector.prompts(trainer.state.drawn)).responses
        )
        counts += drawn.bincount(minlength=341)
    expected = 5120 * testbed.log_ref.exp()
    often = expected >= 5
    found = torch.cat([counts[often], counts[~often].sum()[None]])
    wanted = torch.cat([expected[often], expected[~often].sum()[None]])
    statistic, degrees = ((found - wanted).square() / wanted).sum(), len(wanted) - 1
    assert degrees > 100
    assert abs(statistic - degrees) < 4 * (2 * degrees) ** 0.5  # four standard deviations of χ²
