"""Which rollouts are learnt from: draws, refills and greedy responses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from rlhf.algorithms.advantages import GreedyBaseline
from rlhf.data.order import batch_indices
from rlhf.metrics import Clock
from rlhf.rewards.reward import FunctionReward
from rlhf.rollout.decoding import Greedy


def mean(metrics: Any, name: str) -> float:
    total, count = metrics.pairs[name]
    return total / count


def says_a(prompts: list[str], responses: list[str], columns: list[dict[str, Any]]) -> list[float]:
    """Whether each response says "a" at all."""
    return [float("a" in response.split()) for response in responses]


SAYS_A = FunctionReward(function=says_a, name="says_a")


def collected(trainer: Any) -> Any:
    return trainer.collector.collect(trainer.state.drawn, Clock())


def groups(scored: Any) -> dict[int, set[float]]:
    """The different scores of each group."""
    found: dict[int, set[float]] = {}
    for group, score in zip(scored.rollout.group.tolist(), scored.scores.tolist(), strict=True):
        found.setdefault(group, set()).add(score)
    return found


def unequal(trainer: Any, prompts: int) -> list[int]:
    """By hand: which of the first ``prompts`` prompts drawn have responses of unequal scores."""
    rollout = trainer.collector.sample(trainer.collector.prompts(0, prompts))
    scored = trainer.collector.score(rollout, trainer.train)
    return [group for group, scores in groups(scored).items() if len(scores) > 1]


def grpo(
    toy: ModuleType, draws: int | None, *, missing_eos_score: float | None = None, **changes: Any
) -> Any:
    algorithm = toy.grpo(dynamic_sampling=draws, minibatches=1, missing_eos_score=missing_eos_score)
    return toy.policy_gradient(algorithm, reward=SAYS_A, prompts=8, samples=3, **changes)


def test_nothing_is_replaced_unless_asked(toy: ModuleType) -> None:
    found = collected(grpo(toy, None))
    assert found.drawn == 8
    assert list(groups(found.scored)) == list(range(8))
    assert 0 < found.unequal < 8


def test_groups_of_equal_scores_are_replaced_by_the_next_that_teach(toy: ModuleType) -> None:
    trainer = grpo(toy, 20)
    found = collected(trainer)
    teaching = unequal(trainer, found.drawn)
    assert list(groups(found.scored)) == teaching[:8]  # in the order in which they were drawn
    assert found.unequal == len(teaching) >= 8
    assert len(found.scored.rollout) == 24
    assert all(scores == {0.0, 1.0} for scores in groups(found.scored).values())


def test_only_as_many_prompts_are_drawn_as_are_missing(toy: ModuleType) -> None:
    trainer = grpo(toy, 2)
    first = len(unequal(trainer, 8))
    assert collected(trainer).drawn == 8 + (8 - first)


def test_a_batch_that_cannot_be_filled_keeps_its_size(toy: ModuleType) -> None:
    trainer = grpo(toy, 2)
    found = collected(trainer)
    teaching = unequal(trainer, found.drawn)
    assert found.unequal == len(teaching) < 8
    others = [group for group in range(found.drawn) if group not in teaching]
    assert list(groups(found.scored)) == sorted(teaching + others[: 8 - len(teaching)])


def test_one_draw_is_what_no_replacement_is(toy: ModuleType) -> None:
    first, second = collected(grpo(toy, None)), collected(grpo(toy, 1))
    assert torch.equal(first.scored.rollout.tokens, second.scored.rollout.tokens)


def test_refilled_rows_are_those_that_a_draw_of_their_own_gives(toy: ModuleType) -> None:
    """Prompt, response and their randomness do not depend on the draw that they come from."""
    trainer = grpo(toy, 20)
    found = collected(trainer).scored.rollout
    whole = trainer.collector.sample(trainer.collector.prompts(0, 40))
    texts = trainer.train.texts
    for group in found.group.unique():
        ours, theirs = found.rows(found.group == group), whole.rows(whole.group == group)
        assert texts.responses(ours) == texts.responses(theirs)
        assert texts.prompts(ours) == texts.prompts(theirs)
        for name in ("mask", "sampler_logprobs"):
            width = min(getattr(ours, name).shape[1], getattr(theirs, name).shape[1])
            first, second = getattr(ours, name)[:, :width], getattr(theirs, name)[:, :width]
            torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


def test_the_next_rollout_starts_after_the_last_prompt_drawn(toy: ModuleType) -> None:
    trainer = grpo(toy, 20)
    drawn = collected(trainer).drawn
    metrics = trainer.step()
    assert trainer.state.drawn == drawn == mean(metrics, "rollout/prompts_drawn") > 8
    assert int(toy.next_prompts(trainer).group[0]) == drawn
    assert 0 < mean(metrics, "rollout/unequal_fraction") < 1


@pytest.mark.parametrize("missing", [None, -1.0, 0.5])
def test_every_response_that_is_learnt_from_has_an_advantage(toy: ModuleType, missing: float | None) -> None:
    """A group of equal scores has none, and would only dilute the denominators. What counts is the score that
    it is learnt from: cut responses have a fixed one.
    """
    shares = []
    for draws in (None, 20):
        trainer = grpo(toy, draws, missing_eos_score=missing)
        scored = collected(trainer).scored
        advantages = trainer.estimate(trainer.measure(scored), None).advantages
        shares.append(float((advantages[:, 0] == 0).float().mean()))
    assert shares[0] > 0.2
    assert shares[1] == 0


# Greedy responses


def remax(toy: ModuleType, **changes: Any) -> Any:
    return toy.policy_gradient(toy.rloo(advantage=GreedyBaseline()), prompts=8, samples=2, **changes)


def test_the_greedy_response_is_the_most_likely_token_at_each_step(toy: ModuleType) -> None:
    trainer = remax(toy)
    rollout = toy.next_rollout(trainer)
    greedy = trainer.collector.greedy(rollout, Clock())
    assert greedy.rollout.group.tolist() == list(range(8))
    actor, found = trainer.models.sampling_actor(), greedy.rollout
    logits = actor.logits(found.tokens, found.attention_mask, found.prompt_mask.shape[1])
    best = logits.argmax(2)
    assert torch.equal(found.responses[found.mask], best[found.mask])


def test_an_advantage_is_the_return_minus_the_greedy_return(toy: ModuleType) -> None:
    trainer = remax(toy, reference=toy.actor("reference"))
    scored = collected(trainer).scored
    greedy = trainer.collector.greedy(scored.rollout, Clock())
    measured, other = trainer.measure(scored), trainer.measure(greedy)
    advantages = trainer.estimate(measured, None, other).advantages
    baseline = torch.where(greedy.rollout.ended, greedy.scores, -1.0)  # missing_eos_score, as of any response
    k1 = torch.where(greedy.rollout.mask, other.old_logprobs - other.ref_logprobs, 0.0).sum(1)
    assert k1.abs().max() > 0.1
    expected = measured.rewards.sum(1) - (baseline - 0.1 * k1).repeat_interleave(2)
    assert expected.unique().numel() > 4
    torch.testing.assert_close(advantages[:, 0], expected)


def test_a_step_learns_from_the_greedy_baseline(toy: ModuleType) -> None:
    """The gradient is that of the advantages by hand; without the baseline it is another."""
    seen = []
    for advantage in (GreedyBaseline(), None):
        algorithm = toy.rloo() if advantage is None else toy.rloo(advantage=advantage)
        trainer = toy.policy_gradient(algorithm, samples=2)
        trainer.step()
        seen.append(toy.parameters(trainer.models.actor))
    assert not toy.equal(*seen)


def test_greedy_decoding_leaves_the_sampler_as_it_was(toy: ModuleType) -> None:
    trainer = remax(toy)
    before = trainer.collector.sampler
    trainer.collector.greedy(toy.next_rollout(trainer), Clock())
    assert trainer.collector.sampler is before
    assert not isinstance(before.decoding, Greedy)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_greedy_score_that_is_no_number_is_noted(toy: ModuleType, bad: float) -> None:
    calls = []

    def second(prompts: list[str], responses: list[str], columns: list[dict[str, Any]]) -> list[float]:
        calls.append(1)
        return [bad if len(calls) == 2 else 1.0 for _ in responses]

    trainer = remax(toy, reward=FunctionReward(function=second, name="second"))
    with pytest.raises(FloatingPointError, match=f"rollout 1: second gave {bad} to response 0"):
        trainer.step()


# Ranks


def uneven_prompts(toy: ModuleType) -> Any:
    rows = toy.prompt_set()
    for row in batch_indices(0, 8, len(rows), 0)[1::2].tolist():
        rows.prompts[row] = rows.prompts[row] * 4
    return rows


def two_rollouts(_folder: Path) -> dict[str, Any]:
    """What each of two ranks learns from, and what it sampled: rank 1's prompts are the long ones."""
    from tests.trainers import toy

    trainer = toy.policy_gradient(toy.grpo(), samples=3, train=uneven_prompts(toy))
    scored = collected(trainer).scored
    sampled = trainer.collector.sample(trainer.collector.prompts(0))
    return {
        "learnt": scored.rollout,
        "scores": scored.scores,
        "sampled tokens": int(sampled.attention_mask.sum()),
    }


def test_ranks_learn_from_equally_many_groups_and_nearly_as_many_tokens(
    toy: ModuleType, two_ranks: Callable[[str, str], list[Any]]
) -> None:
    ranks = two_ranks(__file__, "two_rollouts")
    tokens = [int(found["learnt"].attention_mask.sum()) for found in ranks]
    sampled = [found["sampled tokens"] for found in ranks]
    assert sum(tokens) == sum(sampled)
    assert abs(sampled[0] - sampled[1]) > 20
    assert abs(tokens[0] - tokens[1]) < 10
    assert [len(found["learnt"].group.unique()) for found in ranks] == [4, 4]
    whole = collected(toy.policy_gradient(toy.grpo(), samples=3, train=uneven_prompts(toy))).scored
    for found in ranks:  # each row with its own score
        for row, score in zip(found["learnt"].index.tolist(), found["scores"].tolist(), strict=True):
            assert score in whole.scores[whole.rollout.index == row].tolist()
