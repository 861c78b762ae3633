from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from torch.autograd import gradcheck

from rlhf.algorithms.advantages import GAE, GroupRelative, LeaveOneOut
from rlhf.algorithms.aggregation import ConstantLength, SequenceMean, TokenMean
from rlhf.algorithms.kl import KL, ExactKLInLoss, K2InLoss, KLInLoss, KLInReward, NoKL
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
from rlhf.algorithms.value_losses import ClippedValueLoss, SquaredError
from rlhf.batch import Experience, Rollout

MASK = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
ENDED = torch.tensor([False, True, True])
OLD = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -1.0, 7.0], [-0.25, 7.0, 7.0]])
REF = torch.tensor([[-1.5, -1.0, -3.0], [-1.0, -1.0, 5.0], [-0.5, 5.0, 5.0]])
SCORES = torch.tensor([2.0, 3.0, 4.0])


def one_rank(part: Tensor) -> Tensor:
    return part


def ppo(**changes: Any) -> PolicyGradient:
    parts = {
        "advantage": GAE(),
        "policy_loss": Clipped(),
        "kl": KLInReward(),
        "aggregation": TokenMean(),
        "value_loss": ClippedValueLoss(),
    }
    return PolicyGradient(**{**parts, **changes})


def grpo(**changes: Any) -> PolicyGradient:
    parts = {
        "advantage": GroupRelative(),
        "policy_loss": Clipped(),
        "kl": KLInLoss(),
        "aggregation": SequenceMean(),
    }
    return PolicyGradient(**{**parts, **changes})


def experience(fill: float = 0.0) -> Experience:
    rollout = Rollout(
        tokens=torch.zeros(3, 4, dtype=torch.int64),
        prompt_mask=torch.ones(3, 1, dtype=torch.bool),
        mask=MASK,
        ended=ENDED,
        sampler_logprobs=torch.zeros(3, 3),
        index=torch.arange(3),
        group=torch.zeros(3, dtype=torch.int64),
    )
    advantages = torch.tensor([[1.0, -1.0, 2.0], [-2.0, 0.5, 9.0], [3.0, 9.0, 9.0]])
    old, ref, advantages = (torch.where(MASK, x, fill) for x in (OLD, REF, advantages))
    return Experience(rollout=rollout, old_logprobs=old, ref_logprobs=ref, advantages=advantages)


def test_shape_replaces_cut_scores_and_charges_the_kl() -> None:
    found = ppo().shape(SCORES, ENDED, OLD, REF, MASK, 0.5)
    # k1 is [.5, −1, 0], [.5, 0], [.25]; the first response was cut and scores −1
    assert found.tolist() == [[-0.25, 0.5, -1.0], [-0.25, 3.0, 0.0], [3.875, 0.0, 0.0]]
    assert not found.requires_grad


def test_missing_eos_score_null_keeps_the_score() -> None:
    found = ppo(missing_eos_score=None).shape(SCORES, ENDED, OLD, REF, MASK, 0.0)
    assert found.tolist() == [[0.0, 0.0, 2.0], [0.0, 3.0, 0.0], [4.0, 0.0, 0.0]]


def test_missing_eos_score_zero_is_a_score() -> None:
    found = ppo(missing_eos_score=0.0).shape(SCORES, ENDED, OLD, REF, MASK, 0.0)
    assert found.sum(1).tolist() == [0.0, 3.0, 4.0]


def test_row_sums_of_the_rewards_are_score_minus_kl() -> None:
    found = ppo(missing_eos_score=-7.0).shape(SCORES, ENDED, OLD, REF, MASK, 0.3)
    kl = torch.where(MASK, OLD - REF, 0.0).sum(1)
    torch.testing.assert_close(found.sum(1), torch.tensor([-7.0, 3.0, 4.0]) - 0.3 * kl)


def test_rewards_never_carry_a_gradient() -> None:
    scores, old = SCORES.clone().requires_grad_(), OLD.clone().requires_grad_()
    assert not ppo().shape(scores, ENDED, old, REF, MASK, 0.5).requires_grad


def test_a_kl_in_the_loss_is_not_in_the_reward() -> None:
    found = grpo().shape(SCORES, ENDED, OLD, REF, MASK, 0.5)
    assert found.sum(1).tolist() == [-1.0, 3.0, 4.0]


def test_before_the_first_step_the_loss_is_minus_the_advantage() -> None:
    batch = experience()
    found = ppo().token_loss(OLD, batch, 0.5)
    assert torch.equal(found, torch.where(MASK, -batch.advantages, 0.0))


def test_with_whitening_the_first_loss_of_a_rollout_is_zero() -> None:
    """D15: one minibatch that spans the rollout, token mean, ratio one."""
    algorithm, values = ppo(), torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    rewards = algorithm.shape(SCORES, ENDED, OLD, REF, MASK, 0.05)
    batch = experience()
    batch.advantages = algorithm.estimate(rewards, values, MASK, batch.rollout.group, one_rank).advantages
    loss = (algorithm.aggregation(MASK, one_rank) * algorithm.token_loss(OLD, batch, 0.05)).sum()
    assert abs(loss.item()) < 1e-6


def test_token_loss_is_policy_loss_plus_kl_loss() -> None:
    batch = experience()
    found = grpo().token_loss(OLD, batch, 2.0)
    k3 = (REF - OLD).exp() - 1 - (REF - OLD)
    torch.testing.assert_close(found, torch.where(MASK, -batch.advantages + 2.0 * k3, 0.0))


@pytest.mark.parametrize("algorithm", [ppo(), grpo(), grpo(policy_loss=Reinforce(), kl=NoKL())])
@pytest.mark.parametrize("poison", [float("nan"), 1e9, -1e9])
def test_padding_never_reaches_the_loss_or_its_gradient(algorithm: PolicyGradient, poison: float) -> None:
    found = []
    for fill in (0.0, poison):
        logprobs = torch.where(MASK, OLD + 0.1, fill).requires_grad_()
        loss = algorithm.token_loss(logprobs, experience(fill), 0.5)
        (algorithm.aggregation(MASK, one_rank) * loss).sum().backward()
        found.append((loss, logprobs.grad))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_an_estimator_with_a_critic_needs_a_value_loss() -> None:
    with pytest.raises(ValueError, match=r"PolicyGradient.value_loss must be given for GAE, got None"):
        ppo(value_loss=None)


def test_a_critic_that_nobody_reads_is_refused() -> None:
    message = (
        "PolicyGradient.value_loss must be null for LeaveOneOut, which reads no critic, got SquaredError"
    )
    with pytest.raises(ValueError, match=message):
        ppo(advantage=LeaveOneOut(), value_loss=SquaredError())


@pytest.mark.parametrize("name", ["epochs", "minibatches"])
def test_counts_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"PolicyGradient.{name} must be at least 1, got 0"):
        ppo(**{name: 0})


def test_defaults_are_the_published_ones() -> None:
    assert ppo() == ppo(epochs=4, minibatches=1, missing_eos_score=-1.0)
    assert (ppo().epochs, ppo().minibatches, ppo().missing_eos_score) == (4, 1, -1.0)


@pytest.mark.parametrize("algorithm", [ppo(), grpo(), grpo(policy_loss=Reinforce(), kl=NoKL())])
def test_token_loss_is_differentiable(algorithm: PolicyGradient) -> None:
    batch = experience()
    logprobs = (OLD + 0.3 * REF.sin()).double().requires_grad_()
    assert gradcheck(lambda x: algorithm.token_loss(x, batch, 0.5), (logprobs,))


@pytest.mark.parametrize("estimator", [LeaveOneOut(), GroupRelative(divide_by_std=False)])
@pytest.mark.parametrize("missing_eos_score", [None, -1.0])
def test_a_constant_on_every_score_is_felt_by_a_group_where_cut_responses_have_a_fixed_score(
    estimator: LeaveOneOut | GroupRelative, missing_eos_score: float | None
) -> None:
    """D30, both ways: without a fixed score a group does not feel it."""
    algorithm = grpo(advantage=estimator, kl=NoKL(), missing_eos_score=missing_eos_score)
    found = []
    for scores in (SCORES, SCORES + 8.0):
        rewards = algorithm.shape(scores, ENDED, OLD, REF, MASK, 0.0)
        group = torch.zeros(3, dtype=torch.int64)
        found.append(algorithm.estimate(rewards, None, MASK, group, one_rank).advantages)
    assert torch.equal(*found) == (missing_eos_score is None)


# As Hydra sees it: schema, merge, plain object.

PPO = {
    "advantage": OmegaConf.structured(GAE),
    "policy_loss": OmegaConf.structured(Clipped),
    "kl": OmegaConf.structured(KLInReward),
    "aggregation": OmegaConf.structured(TokenMean),
    "value_loss": OmegaConf.structured(ClippedValueLoss),
}


def composed(*overrides: str, **groups: Any) -> Any:
    """The bundle that a schema, chosen groups and command-line overrides come to."""
    config = OmegaConf.merge(OmegaConf.structured(PolicyGradient), {**PPO, **groups})
    assert isinstance(config, DictConfig)
    OmegaConf.set_struct(config, True)
    return OmegaConf.to_object(OmegaConf.merge(config, OmegaConf.from_dotlist(list(overrides))))


def test_components_have_no_default_and_must_be_chosen() -> None:
    schema = OmegaConf.structured(PolicyGradient)
    missing = {str(name) for name in schema if OmegaConf.is_missing(schema, name)}
    assert missing == {"advantage", "policy_loss", "kl", "aggregation"}
    with pytest.raises(OmegaConfBaseException, match="missing mandatory value: advantage"):
        OmegaConf.to_object(schema)
    with pytest.raises(TypeError, match="advantage"):
        PolicyGradient()


def test_composition_gives_callable_components_with_overrides_applied() -> None:
    found = composed("advantage.lam=0.9", "kl.coef=0.02", "epochs=2", "missing_eos_score=null")
    assert isinstance(found, PolicyGradient)
    assert found.advantage == GAE(lam=0.9)
    assert found.kl == KLInReward(coef=0.02)
    assert (found.epochs, found.minibatches, found.missing_eos_score) == (2, 1, None)
    assert found == ppo(advantage=GAE(lam=0.9), kl=KLInReward(coef=0.02), epochs=2, missing_eos_score=None)


def test_composition_without_a_critic() -> None:
    groups = {"advantage": OmegaConf.structured(LeaveOneOut), "value_loss": None}
    groups["aggregation"] = OmegaConf.structured(ConstantLength)
    found = composed("aggregation.length=1", **groups)
    assert isinstance(found.advantage, LeaveOneOut)
    assert found.aggregation == ConstantLength(length=1)
    with pytest.raises(OmegaConfBaseException, match="missing mandatory value: length"):
        composed(**groups)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("advantage.lambda=0.9", "Key 'lambda' not in 'GAE'"),  # misspelt
        ("advantage.divide_by_std=true", "Key 'divide_by_std' not in 'GAE'"),  # left over from GRPO
        ("advantage.lam=much", "could not be converted to Float"),
        ("advantage.lam=1.5", "GAE.lam must be from 0 to 1, got 1.5"),
        ("epochs=0", "PolicyGradient.epochs must be at least 1, got 0"),
        ("epochs=two", "could not be converted to Integer"),
        ("entropy=0.1", "Key 'entropy' not in 'PolicyGradient'"),
        ("value_loss=null", "PolicyGradient.value_loss must be given for GAE, got None"),
    ],
)
def test_wrong_overrides_are_refused(override: str, message: str) -> None:
    with pytest.raises((OmegaConfBaseException, ValueError), match=message):
        composed(override)


def test_a_component_of_another_kind_is_refused() -> None:
    with pytest.raises(OmegaConfBaseException, match="Invalid type assigned"):
        composed(kl=OmegaConf.structured(GAE))


def test_a_new_key_on_a_component_is_refused() -> None:
    config = OmegaConf.merge(OmegaConf.structured(PolicyGradient), PPO)
    OmegaConf.set_struct(config, False)
    config.advantage._set_flag("struct", False)
    OmegaConf.update(config, "advantage.surprise", 1, force_add=True)
    with pytest.raises((OmegaConfBaseException, AttributeError, TypeError), match="surprise"):
        OmegaConf.to_object(config)


def couples(bundle: PolicyGradient) -> bool:
    """Whether the loss of some token, or its slope, moves with another token's log-prob."""
    noise, real = torch.Generator().manual_seed(0), torch.ones(3, 3, dtype=torch.bool)

    def drawn() -> Tensor:
        return -2.0 + 0.05 * torch.randn(3, 3, generator=noise)

    rollout = replace(experience().rollout, mask=real)
    advantages = torch.tensor([[1.0], [-1.0], [2.0]]).expand(3, 3)
    part = Experience(rollout=rollout, old_logprobs=drawn(), ref_logprobs=drawn(), advantages=advantages)

    def known(new: Tensor) -> Tensor:
        """(2, 3, 3): the loss of each token, and its derivative."""
        new = new.clone().requires_grad_()
        loss = bundle.token_loss(new, part, 0.1)
        return torch.stack([loss, *torch.autograd.grad(loss.sum(), new)]).detach()

    one, other = drawn(), drawn()
    other[:, 1] = one[:, 1]  # the middle tokens stay as they are
    assert not torch.equal(known(one)[:, :, 0], known(other)[:, :, 0])
    return not torch.equal(known(one)[:, :, 1], known(other)[:, :, 1])


@pytest.mark.parametrize(
    "kl", [NoKL(), KLInReward(), KLInLoss(), K2InLoss()], ids=lambda kl: type(kl).__name__
)
@pytest.mark.parametrize(
    "loss", [Clipped, SequenceClipped, ClippedWeight, KLPenalised, AdaptiveKLPenalised, Reinforce]
)
def test_one_pass_is_for_losses_of_one_token_alone(loss: type[PolicyLoss], kl: KL) -> None:
    bundle = grpo(policy_loss=loss(), kl=kl)
    assert bundle.one_pass is not couples(bundle)


def test_the_exact_kl_takes_two_passes() -> None:
    assert grpo().one_pass
    assert not grpo(kl=ExactKLInLoss()).one_pass
