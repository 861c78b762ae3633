"""What surrounds the five choices: shaping of scores, what is kept out of the loss, bonuses, schedules."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.advantages import GAE, GroupRelative, MovingAverage, NoBaseline
from rlhf.algorithms.aggregation import Aggregation, ConstantLength, SequenceMean, TokenMean
from rlhf.algorithms.corrections import Level, Masked, Truncated
from rlhf.algorithms.kl import ExactKLInLoss, KLInLoss, KLInReward, NoKL
from rlhf.algorithms.policy_gradient import PolicyGradient
from rlhf.algorithms.policy_losses import AdaptiveKLPenalised, Clipped, KLPenalised, Reinforce
from rlhf.algorithms.shaping import SoftOverlong
from rlhf.algorithms.value_losses import SquaredError
from rlhf.batch import Experience, Rollout

MASK = torch.tensor([[True, True, True, True], [True, True, False, False], [True, False, False, False]])
ENDED = torch.tensor([False, True, True])
OLD = torch.tensor([[-1.0, -2.0, -3.0, -0.5], [-0.5, -1.0, 7.0, 7.0], [-0.25, 7.0, 7.0, 7.0]])
SAMPLER = OLD - torch.tensor([[2.0, 1.0, 1.0, 4.0], [0.25, 2.0, 9.0, 9.0], [1.0, 9.0, 9.0, 9.0]]).log()
ADVANTAGES = torch.tensor([[1.0, -1.0, 2.0, 0.5], [-2.0, 0.5, 9.0, 9.0], [3.0, 9.0, 9.0, 9.0]])


def one_rank(part: Tensor) -> Tensor:
    return part


def algorithm(**changes: Any) -> PolicyGradient:
    parts = {
        "advantage": NoBaseline(),
        "policy_loss": Reinforce(),
        "kl": NoKL(),
        "aggregation": TokenMean(),
        "missing_eos_score": None,
    }
    return PolicyGradient(**{**parts, **changes})


def experience(fill: float = 0.0) -> Experience:
    rollout = Rollout(
        tokens=torch.zeros(3, 5, dtype=torch.int64),
        prompt_mask=torch.ones(3, 1, dtype=torch.bool),
        mask=MASK,
        ended=ENDED,
        sampler_logprobs=torch.where(MASK, SAMPLER, fill),
        index=torch.arange(3),
        group=torch.zeros(3, dtype=torch.int64),
    )
    old, advantages = (torch.where(MASK, x, fill) for x in (OLD, ADVANTAGES))
    return Experience(rollout=rollout, old_logprobs=old, ref_logprobs=old, advantages=advantages)


# Scores


def totals(chosen: PolicyGradient, *scores: float) -> list[float]:
    """Sums of the rewards that the estimator sees of three responses, of which the first was cut off."""
    return chosen.shape(torch.tensor(scores), ENDED, OLD, OLD, MASK, 0.0).sum(1).tolist()


def test_nothing_is_done_to_a_score_unless_asked() -> None:
    assert totals(algorithm(), 7.0, -50.0, 3.0) == [7.0, -50.0, 3.0]


def test_scores_are_clipped_on_both_sides() -> None:
    assert totals(algorithm(score_clip=5.0), 7.0, -50.0, 3.0) == [5.0, -5.0, 3.0]


def test_a_missing_end_has_its_own_score_and_no_clip() -> None:
    assert totals(algorithm(score_clip=5.0, missing_eos_score=-9.0), 7.0, 7.0, 7.0) == [-9.0, 5.0, 5.0]


def test_a_soft_overlong_penalty_comes_on_top_of_the_score() -> None:
    """Limit 4, a buffer of 3 tokens: lengths 4, 2, 1 lose 1, 1/3, 0."""
    found = totals(algorithm(overlong_penalty=SoftOverlong(limit=4, buffer=0.75)), 5.0, 3.0, 2.0)
    assert found == pytest.approx([4.0, 3.0 - 1 / 3, 2.0])


def test_the_penalty_of_a_short_buffer_reaches_only_the_longest() -> None:
    assert SoftOverlong(limit=20)(torch.tensor([16, 17, 18, 19, 20])).tolist() == [
        0.0,
        -0.25,
        -0.5,
        -0.75,
        -1.0,
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"limit": 0}, "SoftOverlong.limit must be at least 1, got 0"),
        ({"limit": 9, "buffer": 0.0}, "SoftOverlong.buffer must be above 0 and at most 1, got 0.0"),
        ({"limit": 9, "buffer": 1.5}, "SoftOverlong.buffer must be above 0 and at most 1, got 1.5"),
    ],
)
def test_a_penalty_without_room_is_refused(values, message) -> None:
    with pytest.raises(ValueError, match=message):
        SoftOverlong(**values)


def test_the_penalty_may_fall_over_the_whole_limit_even_of_one_token() -> None:
    assert SoftOverlong(limit=1, buffer=1.0)(torch.tensor([0, 1])).tolist() == [0.0, -1.0]
    assert SoftOverlong(limit=4, buffer=1.0)(torch.tensor([0, 1, 4])).tolist() == [0.0, -0.25, -1.0]


# What is kept out of the loss

MODES = [TokenMean(), SequenceMean(), ConstantLength(length=4)]


@pytest.mark.parametrize("mode", MODES)
def test_everything_is_in_the_loss_unless_asked(mode: Aggregation) -> None:
    assert torch.equal(algorithm(aggregation=mode).weights(experience(), one_rank), mode(MASK, one_rank))


@pytest.mark.parametrize("mode", MODES)
def test_overlong_filtering_leaves_numerator_and_denominator(mode: Aggregation) -> None:
    found = algorithm(aggregation=mode, overlong_filter=True).weights(experience(), one_rank)
    assert (found[0] == 0).all()
    assert torch.equal(found[1:], mode(MASK[1:], one_rank))  # as if the response had never been there


def test_a_filtered_response_still_moves_its_groups_mean() -> None:
    """D29: the advantages of a group do not change when one of its responses is filtered."""
    chosen = algorithm(advantage=GroupRelative(divide_by_std=False), overlong_filter=True)
    rewards = chosen.shape(torch.tensor([9.0, 3.0, 0.0]), ENDED, OLD, OLD, MASK, 0.0)
    found = chosen.estimate(rewards, None, MASK, torch.zeros(3, dtype=torch.int64), one_rank).advantages
    assert found[:, 0].tolist() == [5.0, -1.0, -4.0]


def test_a_filtered_response_has_no_gradient() -> None:
    chosen, batch = algorithm(overlong_filter=True), experience()
    logprobs = OLD.clone().requires_grad_()
    (chosen.weights(batch, one_rank) * chosen.token_loss(logprobs, batch, 0.0)).sum().backward()
    assert (logprobs.grad[0] == 0).all()
    assert (logprobs.grad[1:][MASK[1:]] != 0).all()


def test_a_minibatch_of_which_nothing_is_left_is_refused() -> None:
    batch = experience().rows(torch.tensor([0]))
    with pytest.raises(ValueError, match="TokenMean: no response in the minibatch has a token"):
        algorithm(overlong_filter=True).weights(batch, one_rank)


def test_rejected_tokens_leave_numerator_and_denominator() -> None:
    chosen, batch = algorithm(correction=Masked(low=0.5, high=3.0)), experience()
    weights = chosen.weights(batch, one_rank)
    kept = MASK & torch.tensor([[1, 1, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]]).bool()  # ratios 4 and 1/4 are out
    torch.testing.assert_close(weights, kept / 5)


# The loss


@pytest.mark.parametrize(
    ("correction", "ratios"),
    [
        (None, [[1.0] * 4, [1.0] * 4, [1.0] * 4]),
        (Truncated(cap=3.0), [[2.0, 1.0, 1.0, 3.0], [0.25, 2.0, 0, 0], [1.0, 0, 0, 0]]),
        (Truncated(cap=6.0, level=Level.sequence), [[6.0] * 4, [0.5, 0.5, 0, 0], [1.0, 0, 0, 0]]),
    ],
)
def test_a_correction_weighs_the_policy_loss(correction, ratios) -> None:
    batch = experience()
    found = algorithm(correction=correction).token_loss(OLD, batch, 0.0)
    expected = torch.where(MASK, -ADVANTAGES * OLD * torch.tensor(ratios), 0.0)
    torch.testing.assert_close(found, expected)


def test_entropies_are_subtracted_with_their_gradient() -> None:
    entropies = torch.full((3, 4), 2.0).requires_grad_()
    plain = algorithm().token_loss(OLD, experience(), 0.0)
    found = algorithm(entropy_coef=0.5).token_loss(OLD, experience(), 0.0, entropies=entropies)
    torch.testing.assert_close(found, plain - torch.where(MASK, 1.0, 0.0))
    found.sum().backward()
    torch.testing.assert_close(entropies.grad, torch.where(MASK, -0.5, 0.0))


def test_exact_kl_is_added_with_its_gradient() -> None:
    exact = torch.full((3, 4), 2.0).requires_grad_()
    plain = algorithm().token_loss(OLD, experience(), 0.0)
    found = algorithm(kl=ExactKLInLoss()).token_loss(OLD, experience(), 0.25, exact_kl=exact)
    torch.testing.assert_close(found, plain + torch.where(MASK, 0.5, 0.0))
    found.sum().backward()
    torch.testing.assert_close(exact.grad, torch.where(MASK, 0.25, 0.0))


def test_what_the_loss_reads_must_be_given() -> None:
    with pytest.raises(
        ValueError, match=r"^PolicyGradient.entropy_coef needs the entropies of the actor, got None$"
    ):
        algorithm(entropy_coef=0.1).token_loss(OLD, experience(), 0.0)
    with pytest.raises(ValueError, match="ExactKLInLoss needs the KL over the whole vocabulary, got None"):
        algorithm(kl=ExactKLInLoss()).token_loss(OLD, experience(), 0.1)


def test_a_kl_without_a_reference_is_refused_and_no_kl_needs_none() -> None:
    scores = torch.tensor([1.0, 2.0, 3.0])
    message = "^KLInLoss needs the log-probs of a reference, got None$"
    with pytest.raises(ValueError, match=message):
        algorithm(kl=KLInLoss()).shape(scores, ENDED, OLD, None, MASK, 0.1)
    found = algorithm(kl=NoKL()).shape(scores, ENDED, OLD, None, MASK, 0.0)
    assert torch.equal(found, algorithm(kl=NoKL()).shape(scores, ENDED, OLD, OLD + 1, MASK, 0.0))


def test_the_penalty_is_the_components_own_until_the_trainer_steers_it() -> None:
    batch, new = experience(), torch.where(MASK, OLD + 0.5, 0.0)
    chosen = algorithm(policy_loss=KLPenalised(coef=2.0))
    bare = algorithm(policy_loss=KLPenalised(coef=2.0)).policy_loss(new, batch.old_logprobs, ADVANTAGES, MASK)
    distance = torch.where(MASK, torch.tensor(0.5).exp() - 1 - 0.5, 0.0)
    torch.testing.assert_close(chosen.token_loss(new, batch, 0.0), bare + 2.0 * distance)
    torch.testing.assert_close(chosen.token_loss(new, batch, 0.0, penalty=8.0), bare + 8.0 * distance)


EVERYTHING = algorithm(
    policy_loss=KLPenalised(),
    kl=ExactKLInLoss(),
    entropy_coef=0.1,
    overlong_filter=True,
    correction=Masked(level=Level.sequence, low=0.4, high=9.0),
)


@pytest.mark.parametrize("poison", [float("nan"), 1e9, -1e9])
def test_padding_never_reaches_the_loss_its_weights_or_its_gradient(poison: float) -> None:
    found = []
    for fill in (0.0, poison):
        batch = experience(fill)
        logprobs, entropies, exact = (
            torch.where(MASK, x, fill).requires_grad_() for x in (OLD + 0.1, OLD, OLD)
        )
        loss = EVERYTHING.token_loss(logprobs, batch, 0.5, entropies=entropies, exact_kl=exact)
        weights = EVERYTHING.weights(batch, one_rank)
        (weights * loss).sum().backward()
        found.append((loss, weights, logprobs.grad, entropies.grad, exact.grad))
        assert all((part[~MASK] == 0).all() for part in found[-1])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


# Schedules and refusals


def test_the_actor_learns_once_the_critic_is_warm() -> None:
    chosen = algorithm(advantage=GAE(), value_loss=SquaredError(), critic_warmup=2)
    assert [chosen.actor_learns(rollouts) for rollouts in range(4)] == [False, False, True, True]
    assert algorithm().actor_learns(0)


def test_updates_stop_above_the_allowed_distance_from_the_old_policy() -> None:
    chosen = algorithm(max_old_kl=0.02)
    assert [chosen.stops(kl) for kl in (0.0, 0.02, 0.0201)] == [False, False, True]
    assert not algorithm().stops(1e9)


ONCE = {"epochs": 1, "minibatches": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score_clip": 0.0}, "PolicyGradient.score_clip must be positive or null, got 0.0"),
        ({"max_old_kl": -1.0}, "PolicyGradient.max_old_kl must be positive or null, got -1.0"),
        ({"entropy_coef": -0.1}, "PolicyGradient.entropy_coef must not be negative, got -0.1"),
        ({"critic_warmup": -1}, "PolicyGradient.critic_warmup must not be negative, got -1"),
        ({"ptx_coef": -0.5}, "PolicyGradient.ptx_coef must not be negative, got -0.5"),
        ({"dynamic_sampling": 0}, "PolicyGradient.dynamic_sampling must be at least 1 or null, got 0"),
        (
            {"critic_warmup": 1, "advantage": MovingAverage()},
            "PolicyGradient.critic_warmup must be 0 for MovingAverage, which reads no critic, got 1",
        ),
        (
            {"policy_loss": AdaptiveKLPenalised(), **ONCE},
            "PolicyGradient.epochs × minibatches must be at least 2 for AdaptiveKLPenalised, which is "
            "steered by how far the policy moved before the last update, got 1",
        ),
        (
            {"max_old_kl": 0.5, **ONCE},
            "PolicyGradient.max_old_kl must be null where epochs × minibatches is 1: there is no later "
            "update to leave out, got 0.5",
        ),
        (
            {"advantage": GAE()},
            "PolicyGradient.value_loss must be given for GAE, got None",
        ),
        (
            {"value_loss": SquaredError()},
            "PolicyGradient.value_loss must be null for NoBaseline, which reads no critic, got SquaredError",
        ),
    ],
)
def test_choices_that_do_not_fit_are_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        algorithm(**changes)


@pytest.mark.parametrize("schedule", [{"epochs": 2, "minibatches": 1}, {"epochs": 1, "minibatches": 2}])
def test_one_later_update_is_enough(schedule: dict[str, int]) -> None:
    assert algorithm(policy_loss=AdaptiveKLPenalised(), max_old_kl=0.1, **schedule).epochs


def test_one_draw_of_prompts_is_allowed() -> None:
    assert algorithm(dynamic_sampling=1).dynamic_sampling == 1


def test_five_choices_are_independent() -> None:
    """Whatever surrounds the loss, the KL in the reward is charged in full."""
    chosen = algorithm(kl=KLInReward(), policy_loss=Clipped(), score_clip=1.0)
    rewards = chosen.shape(torch.zeros(3), ENDED, OLD, OLD - 1.0, MASK, 0.5)
    torch.testing.assert_close(rewards, torch.where(MASK, -0.5, 0.0))
