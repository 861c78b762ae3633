"""E2: the expected gradient of the production losses, by enumeration of every response, against pencil.

G = Σ_y π(y)·(r(y) − β·log π(y)/π_ref(y))·∇log π(y), which is the gradient of E r − β·KL(π‖π_ref).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.advantages import (
    GAE,
    AdvantageEstimator,
    GreedyBaseline,
    GroupRelative,
    LeaveOneOut,
    MovingAverage,
    NoBaseline,
    WhitenedReturns,
)
from rlhf.algorithms.aggregation import ConstantLength, SequenceMean, TokenMean
from rlhf.algorithms.corrections import Level, Truncated
from rlhf.algorithms.kl import (
    KL,
    AdaptiveKLInReward,
    ExactKLInLoss,
    K2InLoss,
    KLInLoss,
    KLInReward,
    NoKL,
)
from rlhf.algorithms.policy_gradient import PolicyGradient
from rlhf.algorithms.policy_losses import (
    AdaptiveKLPenalised,
    Clipped,
    ClippedWeight,
    KLPenalised,
    PolicyLoss,
    Reinforce,
    SequenceClipped,
)
from rlhf.algorithms.value_losses import SquaredError
from rlhf.ops.kl import k1, k2

BETA = 0.5


def one_rank(part: Tensor) -> Tensor:
    return part


def algorithm(lam: float = 0.95, loss: PolicyLoss | None = None, **changes) -> PolicyGradient:
    parts = {
        "advantage": GAE(lam=lam, whiten=False),
        "policy_loss": loss or Reinforce(),
        "kl": KLInReward(coef=BETA),
        "aggregation": TokenMean(),
        "value_loss": SquaredError(),
    }
    return PolicyGradient(**{**parts, **changes})


class Case:
    """The policy of E2, everything that enumeration knows of it, and the production losses on it."""

    def __init__(self, testbed) -> None:
        self.bed = testbed
        self.logits = testbed.ref_logits + testbed.e2_offset
        self.joint = testbed.log_joint(self.logits)
        self.weights = torch.where(testbed.mask, self.joint.exp()[:, None], 0.0)  # (341, T)
        self.old, self.ref = testbed.logprobs(self.logits), testbed.logprobs(testbed.ref_logits)
        self.group = torch.zeros(341, dtype=torch.int64)
        whole = testbed.r - BETA * (self.joint - testbed.log_ref)
        self.exact = self.gradient_of(lambda logits: (self.joint.exp() * whole) @ testbed.log_joint(logits))

    def gradient_of(self, objective: Callable[[Tensor], Tensor]) -> Tensor:
        logits = self.logits.clone().requires_grad_()
        return torch.autograd.grad(objective(logits), logits)[0]

    def shaped(self, chosen: PolicyGradient) -> Tensor:
        """Production rewards; the reward model's word on cut responses is poison."""
        scores = torch.where(self.bed.ended, self.bed.r, torch.nan)
        coef = chosen.kl.initial_coef
        return chosen.shape(scores, self.bed.ended, self.old, self.ref, self.bed.mask, coef)

    def values(self, rewards: Tensor) -> Tensor:
        """(341, T) exact values, and those of other states on padding."""
        return self.bed.state_values(self.joint, rewards)[self.bed.states]

    def advantages(self, chosen: PolicyGradient, rewards: Tensor, values: Tensor) -> Tensor:
        return chosen.estimate(rewards, values, self.bed.mask, self.group, one_rank).advantages

    def ascent(self, chosen: PolicyGradient, advantages: Tensor, weights: Tensor | None = None) -> Tensor:
        """Minus the gradient of the expected production loss."""
        experience = SimpleNamespace(
            rollout=SimpleNamespace(mask=self.bed.mask, sampler_logprobs=self.ref),
            old_logprobs=self.old,
            ref_logprobs=self.ref,
            advantages=advantages,
        )
        weights = self.weights if weights is None else weights
        coef = chosen.kl.initial_coef

        def objective(logits: Tensor) -> Tensor:
            return -(weights * chosen.token_loss(self.bed.logprobs(logits), experience, coef)).sum()

        return self.gradient_of(objective)

    def penalised(self, estimator: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Score to go in the reward and β·estimator per token in the loss."""
        chosen = algorithm(lam=1.0, kl=NoKL())
        rewards = self.shaped(chosen)
        score = self.ascent(chosen, self.advantages(chosen, rewards, torch.zeros_like(rewards)))
        penalty = self.gradient_of(
            lambda logits: (
                self.weights * torch.where(self.bed.mask, estimator(self.bed.logprobs(logits), self.ref), 0.0)
            ).sum()
        )
        return score - BETA * penalty

    def error(self, gradient: Tensor) -> float:
        return ((gradient - self.exact).norm() / self.exact.norm()).item()

    def cosine(self, gradient: Tensor) -> float:
        return torch.cosine_similarity(gradient.flatten(), self.exact.flatten(), dim=0).item()


@pytest.fixture(scope="module")
def case(testbed) -> Case:
    return Case(testbed)


def test_the_case_is_the_specified_one(case: Case, testbed) -> None:
    p = case.joint.exp()
    assert (p @ (case.joint - testbed.log_star)).item() == pytest.approx(2.197111141030, abs=1e-11)
    kl = p @ (case.joint - testbed.log_ref)
    assert kl.item() == pytest.approx(0.538980810922, abs=1e-11)
    assert (p @ testbed.r - BETA * kl).item() == pytest.approx(-0.991880763157, abs=1e-11)
    assert case.exact.norm().item() == pytest.approx(0.3191402495, abs=1e-9)
    assert case.exact[0, 0].item() == pytest.approx(-0.2303812740, abs=1e-9)


def test_exact_gradient_is_the_finite_difference_of_the_objective(case: Case, testbed) -> None:
    def objective(logits: Tensor) -> float:
        joint = testbed.log_joint(logits)
        return (joint.exp() @ (testbed.r - BETA * (joint - testbed.log_ref))).item()

    for state, token in [(0, 0), (0, 4), (3, 2), (40, 1), (84, 3)]:
        step = torch.zeros_like(case.logits)
        step[state, token] = 1e-5
        difference = (objective(case.logits + step) - objective(case.logits - step)) / 2e-5
        assert case.exact[state, token].item() == pytest.approx(difference, abs=1e-9)


LOSSES = [
    Reinforce(),
    Clipped(),
    Clipped(dual_clip=3.0),
    SequenceClipped(),
    ClippedWeight(),
    KLPenalised(),
    AdaptiveKLPenalised(),
]


@pytest.mark.parametrize("loss", LOSSES)
def test_kl_of_the_whole_sequence_gives_the_exact_gradient(case: Case, testbed, loss: PolicyLoss) -> None:
    chosen = algorithm(loss=loss)
    bandit = torch.where(testbed.mask, case.shaped(chosen).sum(1, keepdim=True), 0.0)
    assert case.error(case.ascent(chosen, bandit)) <= 1e-12


@pytest.mark.parametrize("kl", [KLInReward(coef=BETA), AdaptiveKLInReward(coef=BETA)])
@pytest.mark.parametrize("loss", LOSSES)
def test_kl_to_go_gives_the_exact_gradient(case: Case, loss: PolicyLoss, kl: KL) -> None:
    chosen = algorithm(lam=1.0, loss=loss, kl=kl)
    rewards = case.shaped(chosen)
    advantages = case.advantages(chosen, rewards, torch.zeros_like(rewards))
    assert case.error(case.ascent(chosen, advantages)) <= 1e-12


def test_any_baseline_of_the_state_gives_the_exact_gradient(case: Case, testbed) -> None:
    chosen = algorithm(lam=1.0)
    baseline = torch.randn(85, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    advantages = case.advantages(chosen, case.shaped(chosen), baseline[testbed.states])
    assert case.error(case.ascent(chosen, advantages)) <= 1e-12


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_gae_with_exact_values_gives_the_exact_gradient_for_every_lambda(case: Case, lam: float) -> None:
    chosen = algorithm(lam=lam, loss=Clipped())
    rewards = case.shaped(chosen)
    advantages = case.advantages(chosen, rewards, case.values(rewards))
    assert case.error(case.ascent(chosen, advantages)) <= 1e-12


def test_whitening_divides_the_exact_gradient_by_the_standard_deviation(case: Case) -> None:
    chosen = algorithm()
    rewards = case.shaped(chosen)
    values = case.values(rewards)
    raw = case.advantages(chosen, rewards, values)
    sums = torch.stack([(case.weights * x).sum() for x in (raw, raw.square(), torch.ones_like(raw))])
    # the population's sums in place of the sample's: every response as often as the policy says it
    whitened = GAE(whiten=True)(rewards, values, case.bed.mask, case.group, lambda _: sums).advantages
    sigma = (sums[1] / sums[2] - (sums[0] / sums[2]).square()).sqrt()
    assert sigma.item() == pytest.approx(0.803518, abs=1e-6)
    scale = (sigma.square() + 1e-8).sqrt()
    assert case.error(scale * case.ascent(chosen, whitened)) <= 1e-12


@pytest.fixture
def double() -> Iterator[None]:
    """Weights are of torch's default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def replicated(case: Case, length: int) -> Tensor:
    """The weights of the production aggregation, with one row per response and π(y)·341 as importance."""
    chosen = algorithm(lam=1.0, aggregation=ConstantLength(length=length))
    rewards = case.shaped(chosen)
    advantages = case.advantages(chosen, rewards, torch.zeros_like(rewards))
    weights = chosen.aggregation(case.bed.mask, one_rank) * 341 * case.joint.exp()[:, None]
    return case.ascent(chosen, advantages, weights)


@pytest.mark.usefixtures("double")
def test_constant_length_one_on_replicated_rows_is_the_policy_gradient(case: Case) -> None:
    assert case.error(replicated(case, 1)) <= 1e-12


@pytest.mark.usefixtures("double")
def test_a_longer_constant_length_divides_the_policy_gradient_by_it(case: Case) -> None:
    assert case.error(4 * replicated(case, 4)) <= 1e-12


@pytest.mark.usefixtures("double")
def test_token_mean_of_a_large_minibatch_is_the_policy_gradient_over_the_mean_length(
    case: Case, testbed
) -> None:
    """Its denominator is then the population's tokens per response, which turns nothing."""
    chosen, p = algorithm(lam=1.0), case.joint.exp()
    length = p @ testbed.mask.sum(1).double()
    weights = chosen.aggregation(testbed.mask, lambda _: length) * p[:, None]
    rewards = case.shaped(chosen)
    advantages = case.advantages(chosen, rewards, torch.zeros_like(rewards))
    assert case.error(length * case.ascent(chosen, advantages, weights)) <= 1e-12


@pytest.mark.usefixtures("double")
def test_token_mean_of_one_response_is_the_sequence_mean(testbed) -> None:
    """In a minibatch of one the denominator is that response's own length: biased as `SequenceMean`."""
    alone = torch.cat([TokenMean()(row[None], one_rank) for row in testbed.mask])
    torch.testing.assert_close(alone, SequenceMean()(testbed.mask, one_rank) * 341, rtol=0, atol=1e-15)


# Groups of two: all 341² pairs of responses, through the production estimator, loss and aggregation.


def of_pairs(case: Case, estimator: AdvantageEstimator) -> Tensor:
    """Expected ascent direction of a group of two."""
    bed, p = case.bed, case.joint.exp()
    chosen = algorithm(
        advantage=estimator, value_loss=None, policy_loss=Clipped(), aggregation=ConstantLength(length=1)
    )
    rows = torch.cartesian_prod(torch.arange(341), torch.arange(341)).flatten()  # (2·341²,)
    group = torch.arange(341**2).repeat_interleave(2)
    rewards, mask = case.shaped(chosen)[rows], bed.mask[rows]
    advantages = chosen.estimate(rewards, None, mask, group, one_rank).advantages
    likelihood = (p[:, None] * p).flatten().repeat_interleave(2)[:, None]
    pair = torch.where(mask, chosen.aggregation(mask, one_rank).double() * 341**2 * likelihood, 0.0)
    experience = SimpleNamespace(
        rollout=SimpleNamespace(mask=mask),
        old_logprobs=case.old[rows],
        ref_logprobs=case.ref[rows],
        advantages=advantages,
    )
    return case.gradient_of(
        lambda logits: -(pair * chosen.token_loss(bed.logprobs(logits)[rows], experience, BETA)).sum()
    )


@pytest.mark.usefixtures("double")
def test_leave_one_out_gives_the_exact_gradient_with_the_kl_in_the_reward(case: Case) -> None:
    assert case.error(of_pairs(case, LeaveOneOut())) <= 1e-12


@pytest.mark.usefixtures("double")
def test_the_group_mean_gives_half_the_exact_gradient_in_groups_of_two(case: Case) -> None:
    """(G − 1)/G of it: the response's own score is in the baseline."""
    assert case.error(2 * of_pairs(case, GroupRelative(divide_by_std=False))) <= 1e-12


@pytest.mark.usefixtures("double")
def test_dividing_by_the_deviation_leaves_the_sign_of_the_difference_in_groups_of_two(
    case: Case, testbed
) -> None:
    """Two returns deviate by ±d/2 from their mean and have the unbiased deviation |d|/√2."""
    returns, p = testbed.r - BETA * (case.joint - testbed.log_ref), case.joint.exp()
    difference = returns[:, None] - returns
    advantage = (difference / 2 / (difference.abs() / 2**0.5 + 1e-4)) @ p  # (341,)
    predicted = case.gradient_of(lambda logits: (p * advantage) @ testbed.log_joint(logits))
    found = of_pairs(case, GroupRelative())
    torch.testing.assert_close(found, predicted, rtol=0, atol=1e-13)
    assert case.cosine(found) < 0.999


# Without a critic: any number that was known before the response was drawn, and global moments.


@pytest.mark.parametrize("estimator", [NoBaseline(), MovingAverage(), GreedyBaseline()])
@pytest.mark.parametrize("baseline", [-2.0, 0.7])
def test_any_number_known_beforehand_gives_the_exact_gradient(case: Case, estimator, baseline: float) -> None:
    chosen = algorithm(advantage=estimator, value_loss=None)
    found = chosen.estimate(
        case.shaped(chosen), None, case.bed.mask, case.group, one_rank, torch.full((341,), baseline)
    )
    assert case.error(case.ascent(chosen, found.advantages)) <= 1e-12


def test_whitening_the_returns_divides_the_exact_gradient_by_their_standard_deviation(case: Case) -> None:
    chosen = algorithm(advantage=WhitenedReturns(), value_loss=None)
    rewards, mask = case.shaped(chosen), case.bed.mask
    raw = torch.where(mask, rewards, 0.0).flip(1).cumsum(1).flip(1)
    sums = torch.stack([(case.weights * x).sum() for x in (raw, raw.square(), torch.ones_like(raw))])
    whitened = chosen.estimate(rewards, None, mask, case.group, lambda _: sums).advantages
    sigma = (sums[1] / sums[2] - (sums[0] / sums[2]).square() + 1e-8).sqrt()
    assert case.error(sigma * case.ascent(chosen, whitened)) <= 1e-12


def test_clipping_the_score_is_the_gradient_of_the_clipped_objective(case: Case) -> None:
    chosen, bed = algorithm(lam=1.0, score_clip=0.5, missing_eos_score=None), case.bed
    whole = bed.r.clamp(-0.5, 0.5) - BETA * (case.joint - bed.log_ref)
    expected = case.gradient_of(lambda logits: (case.joint.exp() * whole) @ bed.log_joint(logits))
    rewards = chosen.shape(bed.r, bed.ended, case.old, case.ref, bed.mask, BETA)
    found = case.ascent(chosen, case.advantages(chosen, rewards, torch.zeros_like(rewards)))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_an_importance_correction_makes_samples_of_another_policy_exact(case: Case) -> None:
    """Responses drawn from the reference, weighed as a whole without a bound that bites."""
    chosen = algorithm(correction=Truncated(cap=1e9, level=Level.sequence))
    bandit = torch.where(case.bed.mask, case.shaped(chosen).sum(1, keepdim=True), 0.0)
    drawn = torch.where(case.bed.mask, case.bed.log_ref.exp()[:, None], 0.0)
    assert case.error(case.ascent(chosen, bandit, drawn)) <= 1e-12
    assert case.error(case.ascent(algorithm(), bandit, drawn)) > 0.1  # without it


# D30, both ways: a constant on every score is invisible, unless something is not shift-equivariant.


def shifted(case: Case, chosen: PolicyGradient, constant: float) -> Tensor:
    bed = case.bed
    rewards = chosen.shape(bed.r + constant, bed.ended, case.old, case.ref, bed.mask, BETA)
    return case.ascent(chosen, case.advantages(chosen, rewards, case.values(rewards)))


def test_a_constant_on_every_score_leaves_the_gradient_of_ppo_alone(case: Case) -> None:
    chosen = algorithm(missing_eos_score=None)
    assert case.error(shifted(case, chosen, 7.0)) <= 1e-12


def test_a_constant_on_every_score_is_felt_where_cut_responses_have_a_fixed_score(case: Case) -> None:
    assert case.error(shifted(case, algorithm(missing_eos_score=-1.0), 7.0)) > 0.1


# Negative controls: what each wrong gradient is off by, and how little its direction shows it.


@pytest.mark.parametrize(("lam", "error"), [(0.95, 0.048), (0.5, 0.384), (0.0, 0.592)])
def test_lambda_below_one_with_a_wrong_critic_is_biased(case: Case, lam: float, error: float) -> None:
    chosen = algorithm(lam=lam)
    rewards = case.shaped(chosen)
    advantages = case.advantages(chosen, rewards, torch.zeros_like(rewards))
    assert case.error(case.ascent(chosen, advantages)) == pytest.approx(error, abs=6e-4)


@pytest.mark.parametrize(("estimator", "error", "cosine"), [(k2, 0.174, 0.990), (k1, 0.738, 0.784)])
def test_k1_and_k2_as_token_losses_are_wrong(case: Case, estimator, error: float, cosine: float) -> None:
    gradient = case.penalised(estimator)
    assert case.error(gradient) == pytest.approx(error, abs=6e-4)
    assert case.cosine(gradient) == pytest.approx(cosine, abs=6e-4)


def test_k1_as_a_loss_is_no_penalty_at_all(case: Case) -> None:
    none = case.penalised(lambda logprobs, ref: 0 * logprobs)
    torch.testing.assert_close(case.penalised(k1), none, rtol=0, atol=1e-13)


def test_kl_in_loss_is_wrong_by_the_documented_amount(case: Case) -> None:
    chosen = algorithm(lam=1.0, kl=KLInLoss(coef=BETA))
    rewards = case.shaped(chosen)
    gradient = case.ascent(chosen, case.advantages(chosen, rewards, torch.zeros_like(rewards)))
    assert case.error(gradient) == pytest.approx(0.296, abs=6e-4)
    assert case.cosine(gradient) == pytest.approx(0.966, abs=6e-4)


def test_k2_in_loss_is_wrong_by_the_documented_amount(case: Case) -> None:
    chosen = algorithm(lam=1.0, kl=K2InLoss(coef=BETA))
    rewards = case.shaped(chosen)
    gradient = case.ascent(chosen, case.advantages(chosen, rewards, torch.zeros_like(rewards)))
    assert case.error(gradient) == pytest.approx(0.174, abs=6e-4)
    assert case.cosine(gradient) == pytest.approx(0.990, abs=6e-4)


def test_exact_kl_in_loss_has_the_expected_gradient_of_k2(case: Case, testbed) -> None:
    def penalty(logits: Tensor) -> Tensor:
        table, ref = logits.log_softmax(1), testbed.ref_logits.log_softmax(1)
        exact = (table.exp() * (table - ref)).sum(1)[testbed.states]  # (341, T), by the definition
        return (case.weights * ExactKLInLoss().exact_loss(exact, testbed.mask, BETA)).sum()

    k2_loss = case.gradient_of(
        lambda logits: (
            case.weights * K2InLoss().loss(testbed.logprobs(logits), case.ref, testbed.mask, BETA)
        ).sum()
    )
    torch.testing.assert_close(case.gradient_of(penalty), k2_loss, rtol=1e-12, atol=1e-14)


def charged(case: Case, penalty: Tensor) -> Tensor:
    """The ascent direction when ``penalty`` (341, T) is charged in place of β·k1."""
    chosen = algorithm(lam=1.0, kl=NoKL())
    rewards = case.shaped(chosen) - torch.where(case.bed.mask, penalty, 0.0)
    return case.ascent(chosen, case.advantages(chosen, rewards, torch.zeros_like(rewards)))


def test_the_negative_controls_control(case: Case) -> None:
    assert case.error(charged(case, BETA * (case.old - case.ref))) <= 1e-12


def test_no_kl_on_the_last_token_is_wrong(case: Case, testbed) -> None:
    """The specification prints the last real token, cut responses included; the EOS alone gives 0.452."""
    last = testbed.mask.sum(1, keepdim=True) - 1
    gradient = charged(case, torch.where(torch.arange(4) == last, 0.0, BETA * (case.old - case.ref)))
    assert case.error(gradient) == pytest.approx(0.449, abs=6e-4)
    assert case.cosine(gradient) == pytest.approx(0.942, abs=6e-4)


def test_kl_clamped_at_zero_is_wrong(case: Case) -> None:
    gradient = charged(case, BETA * (case.old - case.ref).clamp(min=0))
    assert case.error(gradient) == pytest.approx(0.196, abs=6e-4)
    assert case.cosine(gradient) == pytest.approx(0.985, abs=6e-4)


def test_sequence_mean_turns_the_gradient_of_the_score(case: Case, testbed) -> None:
    chosen = algorithm(kl=NoKL(), aggregation=SequenceMean())
    centred = testbed.r - case.joint.exp() @ testbed.r
    exact = case.gradient_of(lambda logits: (case.joint.exp() * testbed.r) @ testbed.log_joint(logits))
    weights = chosen.aggregation(testbed.mask, one_rank).double() * 341 * case.joint.exp()[:, None]
    gradient = case.ascent(chosen, torch.where(testbed.mask, centred[:, None], 0.0), weights)
    cosine = torch.cosine_similarity(gradient.flatten(), exact.flatten(), dim=0)
    assert cosine.item() == pytest.approx(0.894, abs=6e-4)


# E3: the clipped surrogate is the estimator above at ratio one, and D38 away from it.


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_at_the_old_policy_ppo_is_the_policy_gradient_for_both_signs(case: Case, sign: float) -> None:
    chosen, plain = algorithm(loss=Clipped()), algorithm(loss=Reinforce())
    rewards = case.shaped(chosen)
    advantages = case.advantages(chosen, rewards, case.values(rewards)).abs() * sign
    torch.testing.assert_close(
        case.ascent(chosen, advantages), case.ascent(plain, advantages), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("distance", [-2.0, -0.5, 0.5, 2.0])
def test_along_a_line_a_token_has_gradient_exactly_where_it_is_not_clipped(
    case: Case, distance: float
) -> None:
    testbed, loss = case.bed, Clipped(clip_low=0.2, clip_high=0.28)
    generator = torch.Generator().manual_seed(1)
    (direction,) = torch.randn(1, 85, 5, generator=generator, dtype=torch.float64)
    advantages = torch.randn(341, 4, generator=generator, dtype=torch.float64)
    new = testbed.logprobs(case.logits + distance * direction).requires_grad_()
    found = torch.autograd.grad(loss(new, case.old, advantages, testbed.mask).sum(), new)[0]
    ratio = (new.detach() - case.old).exp()
    outside = torch.where(advantages > 0, ratio > 1.28, ratio < 0.8)
    expected = torch.where(testbed.mask & ~outside, -advantages * ratio, 0.0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(loss.clipped(new, case.old, advantages), outside)
    regions = set(zip((advantages > 0)[testbed.mask].tolist(), outside[testbed.mask].tolist(), strict=True))
    assert len(regions) == 4
