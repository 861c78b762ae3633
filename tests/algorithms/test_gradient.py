"""E2: the expected gradient of the production losses, by enumeration of every response, against pencil.

G = Σ_y π(y)·(r(y) − β·log π(y)/π_ref(y))·∇log π(y), which is the gradient of E r − β·KL(π‖π_ref).
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.advantages import GAE
from rlhf.algorithms.aggregation import ConstantLength, SequenceMean, TokenMean
from rlhf.algorithms.kl import KLInLoss, KLInReward, NoKL
from rlhf.algorithms.policy_gradient import PolicyGradient
from rlhf.algorithms.policy_losses import Clipped, PolicyLoss, Reinforce
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
            rollout=SimpleNamespace(mask=self.bed.mask),
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


LOSSES = [Reinforce(), Clipped()]


@pytest.mark.parametrize("loss", LOSSES)
def test_kl_of_the_whole_sequence_gives_the_exact_gradient(case: Case, testbed, loss: PolicyLoss) -> None:
    chosen = algorithm(loss=loss)
    bandit = torch.where(testbed.mask, case.shaped(chosen).sum(1, keepdim=True), 0.0)
    assert case.error(case.ascent(chosen, bandit)) <= 1e-12


@pytest.mark.parametrize("loss", LOSSES)
def test_kl_to_go_gives_the_exact_gradient(case: Case, loss: PolicyLoss) -> None:
    chosen = algorithm(lam=1.0, loss=loss)
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


def test_constant_length_one_on_replicated_rows_is_the_policy_gradient(case: Case, testbed) -> None:
    """The weights of the production aggregation, with one row per response and π(y)·341 as importance."""
    chosen = algorithm(lam=1.0, aggregation=ConstantLength(length=1))
    rewards = case.shaped(chosen)
    advantages = case.advantages(chosen, rewards, torch.zeros_like(rewards))
    weights = chosen.aggregation(testbed.mask, one_rank).double() * 341 * case.joint.exp()[:, None]
    assert case.error(case.ascent(chosen, advantages, weights)) <= 1e-6  # weights are float32


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
