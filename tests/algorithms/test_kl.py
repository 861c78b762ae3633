import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from rlhf.algorithms.kl import KL, AdaptiveKLInReward, ExactKLInLoss, K2InLoss, KLInLoss, KLInReward, NoKL

MASK = torch.tensor([[True, True, True], [True, False, False]])
COMPONENTS = [NoKL(), KLInReward(), AdaptiveKLInReward(), KLInLoss(), K2InLoss(), ExactKLInLoss()]


def draws() -> tuple[Tensor, Tensor]:
    logprobs, ref = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return logprobs, ref


@pytest.mark.parametrize("kl", [KLInReward(), AdaptiveKLInReward()])
def test_kl_in_reward_charges_k1_on_every_real_token_and_nothing_in_the_loss(kl: KL) -> None:
    old, ref = torch.tensor([[-1.0, -2.0, -3.0]] * 2), torch.tensor([[-1.5, -1.0, -3.0]] * 2)
    assert kl.reward(old, ref, MASK, 0.5).tolist() == [[-0.25, 0.5, 0.0], [-0.25, 0.0, 0.0]]
    assert kl.loss(old, ref, MASK, 0.5).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("kl", COMPONENTS)
def test_rewards_carry_no_gradient(kl: KL) -> None:
    logprobs, ref = draws()
    assert not kl.reward(logprobs.requires_grad_(), ref, MASK, 0.5).requires_grad


def test_kl_in_loss_is_k3_with_its_gradient_and_nothing_in_the_reward() -> None:
    logprobs = torch.tensor([[math.log(0.5)]], requires_grad=True)
    ref, real = torch.tensor([[math.log(0.25)]]), torch.tensor([[True]])  # ρ = ½
    loss = KLInLoss().loss(logprobs, ref, real, 2.0)
    loss.sum().backward()
    assert loss.item() == pytest.approx(2 * (0.5 - 1 + math.log(2)))
    assert logprobs.grad.item() == pytest.approx(2 * (1 - 0.5))
    assert KLInLoss().reward(logprobs, ref, real, 2.0).tolist() == [[0.0]]


def test_no_kl_reads_nothing_and_adds_nothing() -> None:
    nothing = torch.full((2, 3), torch.nan)
    assert NoKL().reward(torch.zeros(2, 3), nothing, MASK, 1.0).tolist() == [[0.0] * 3] * 2
    assert NoKL().loss(torch.zeros(2, 3), nothing, MASK, 1.0).tolist() == [[0.0] * 3] * 2
    assert NoKL().initial_coef == 0


def test_defaults_are_the_published_ones() -> None:
    assert [kl.initial_coef for kl in COMPONENTS] == [0.0, 0.05, 0.15, 0.04, 0.01, 0.01]
    adaptive = AdaptiveKLInReward()
    assert (adaptive.target, adaptive.horizon) == (6.0, 10_000)


@pytest.mark.parametrize("kl", COMPONENTS)
@pytest.mark.parametrize("poison", [float("nan"), 1e9, -1e9])
def test_padding_never_reaches_reward_loss_or_gradient(kl: KL, poison: float) -> None:
    found = []
    for fill in (0.0, poison):
        logprobs, ref = (torch.where(MASK, x, fill) for x in draws())
        logprobs.requires_grad_()
        reward, loss = kl.reward(logprobs, ref, MASK, 0.5), kl.loss(logprobs, ref, MASK, 0.5)
        (loss.sum() + 0 * logprobs[MASK].sum()).backward()
        assert (reward[~MASK] == 0).all()
        assert (loss[~MASK] == 0).all()
        found.append((reward, loss, logprobs.grad))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_controller_follows_the_literal_sequence() -> None:
    kl, coef = AdaptiveKLInReward(target=6.0, horizon=10_000), 0.1
    for sequence_kl in (12.0, 6.0, 3.0, 6.6):
        coef = kl.next_coef(coef, sequence_kl, 512)
    assert coef == pytest.approx(0.100501460553, abs=1e-12)


@pytest.mark.parametrize("sequence_kl", [-50.0, 0.0, 5.0, 6.0, 7.0, 1e6])
def test_controller_moves_by_at_most_a_fifth_of_its_horizon(sequence_kl: float) -> None:
    factor = AdaptiveKLInReward().next_coef(1.0, sequence_kl, 512)
    assert 0.98976 - 1e-12 <= factor <= 1.01024 + 1e-12
    assert (factor > 1) == (sequence_kl > 6)
    assert (factor == 1) == (sequence_kl == 6)


@pytest.mark.parametrize("kl", [NoKL(), KLInReward(), KLInLoss()])
def test_fixed_coefficients_stay(kl: KL) -> None:
    assert kl.next_coef(0.3, 100.0, 512) == 0.3


@pytest.mark.parametrize(
    ("component", "values", "message"),
    [
        (KLInReward, {"coef": -1.0}, "KLInReward.coef must not be negative, got -1.0"),
        (KLInLoss, {"coef": -0.5}, "KLInLoss.coef must not be negative, got -0.5"),
        (K2InLoss, {"coef": -0.5}, "K2InLoss.coef must not be negative, got -0.5"),
        (ExactKLInLoss, {"coef": -0.5}, "ExactKLInLoss.coef must not be negative, got -0.5"),
        (AdaptiveKLInReward, {"coef": 0.0}, "AdaptiveKLInReward.coef must be positive, got 0.0"),
        (AdaptiveKLInReward, {"target": 0.0}, "AdaptiveKLInReward.target must be positive, got 0.0"),
        (AdaptiveKLInReward, {"horizon": 0}, "AdaptiveKLInReward.horizon must be positive, got 0"),
    ],
)
def test_values_out_of_range_are_refused(component, values, message) -> None:
    with pytest.raises(ValueError, match=message):
        component(**values)


@pytest.mark.parametrize("component", [KLInReward, KLInLoss, K2InLoss, ExactKLInLoss])
def test_a_coefficient_of_zero_is_a_coefficient(component) -> None:
    assert component(coef=0.0).initial_coef == 0.0


@pytest.mark.parametrize("kl", [KLInLoss(), K2InLoss()])
def test_padding_adds_nothing_to_the_loss(kl: KL) -> None:
    logprobs, ref = draws()
    assert kl.loss(logprobs, ref, MASK, 0.5)[~MASK].eq(0).all()
    assert kl.loss(logprobs, ref, MASK, 0.5)[MASK].ne(0).all()


def test_the_exact_kl_enters_the_loss_of_its_own_component_alone() -> None:
    exact = torch.where(MASK, 2.0, math.nan)
    assert torch.equal(ExactKLInLoss().exact_loss(exact, MASK, 0.25), torch.where(MASK, 0.5, 0.0))
    assert torch.equal(KLInLoss().exact_loss(exact, MASK, 0.25), torch.zeros(MASK.shape))


@pytest.mark.parametrize("kl", COMPONENTS)
def test_what_enters_the_loss_is_differentiable(kl: KL) -> None:
    logprobs, ref = draws()
    assert gradcheck(lambda x: kl.loss(x, ref, MASK, 0.5), (logprobs.requires_grad_(),))


@pytest.mark.parametrize("kl", COMPONENTS)
def test_no_component_rewards_anything_but_k1_or_descends_k1(kl: KL) -> None:
    """The placements that mislead (numerics D17) do not exist: a reward is 0 or −coef·k1; as a loss the
    expected gradient of one step is never 0 unless the loss itself is, as that of k1 would be."""
    policy, ref = torch.randn(2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    policy, ref = policy.requires_grad_(), ref.log_softmax(0)[:, None]
    logprobs, real = policy.log_softmax(0)[:, None], torch.ones(6, 1, dtype=torch.bool)
    reward = kl.reward(logprobs.detach(), ref, real, 0.5)
    assert not reward.any() or torch.equal(reward, -0.5 * (logprobs.detach() - ref))
    loss = kl.loss(logprobs, ref, real, 0.5)
    if loss.any():
        (gradient,) = torch.autograd.grad((logprobs.detach().exp() * loss).sum(), policy)
        assert gradient.norm() > 0.01
