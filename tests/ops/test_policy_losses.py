import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from rlhf.ops.policy_losses import approx_kl, clipped, clipped_surrogate, reinforce

CLIPS = {"clip_low": 0.2, "clip_high": 0.3}


def one(x: float) -> Tensor:
    return torch.tensor([[x]], dtype=torch.float64)


# ratio, advantage → loss, ∂loss/∂logprob (−A·ρ, or 0 where it is clipped), clipped: the six regions of D38
REGIONS = [
    (0.5, 2.0, -1.0, -1.0, False),
    (1.1, 2.0, -2.2, -2.2, False),
    (1.5, 2.0, -2.6, 0.0, True),
    (0.5, -2.0, 1.6, 0.0, True),
    (0.9, -2.0, 1.8, 1.8, False),
    (1.5, -2.0, 3.0, 3.0, False),
    (1.0, 2.0, -2.0, -2.0, False),
    (1.25, 0.0, 0.0, 0.0, False),
    (1.5, 0.0, 0.0, 0.0, False),
    (0.5, 0.0, 0.0, 0.0, False),
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "gradient", "outside"), REGIONS)
def test_clipped_surrogate_has_six_regions(
    ratio: float, advantage: float, loss: float, gradient: float, outside: bool
) -> None:
    logprobs = one(math.log(ratio) - 1.0).requires_grad_()
    real = torch.ones(1, 1, dtype=torch.bool)
    found = clipped_surrogate(logprobs, one(-1.0), one(advantage), real, **CLIPS)
    found.sum().backward()
    assert found.item() == pytest.approx(loss, abs=1e-12)
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(gradient, abs=1e-12)
    assert clipped(logprobs, one(-1.0), one(advantage), **CLIPS).item() is outside


def ragged(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logprobs, noise, advantages = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([[5], [3], [1], [0]])
    return logprobs, logprobs + 0.3 * noise, advantages, mask


def test_at_ratio_one_the_surrogate_is_reinforce() -> None:
    logprobs, _, advantages, mask = ragged()
    logprobs.requires_grad_()
    weights = torch.rand(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    surrogate = clipped_surrogate(logprobs, logprobs.detach(), advantages, mask, **CLIPS)
    first = torch.autograd.grad((weights * surrogate).sum(), logprobs)[0]
    second = torch.autograd.grad((weights * reinforce(logprobs, advantages, mask)).sum(), logprobs)[0]
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(surrogate, torch.where(mask, -advantages, 0.0))


def test_reinforce_is_minus_advantage_times_logprob() -> None:
    found = reinforce(torch.tensor([[-0.5, -2.0]]), torch.tensor([[3.0, -1.0]]), torch.tensor([[True, True]]))
    assert found.tolist() == [[1.5, -2.0]]


def test_log_ratio_is_not_clamped() -> None:
    found = clipped_surrogate(one(40.0), one(0.0), one(-1.0), torch.ones(1, 1, dtype=torch.bool), **CLIPS)
    assert found.item() == pytest.approx(math.exp(40))


@pytest.mark.parametrize("poison", [float("nan"), 1e9, -1e9])
def test_padding_never_reaches_loss_or_gradient(poison: float) -> None:
    logprobs, old, advantages, mask = ragged()
    found = []
    for fill in (0.0, poison):
        x = torch.where(mask, logprobs, fill).requires_grad_()
        rest = [torch.where(mask, part, fill) for part in (old, advantages)]
        losses = clipped_surrogate(x, *rest, mask, **CLIPS), reinforce(x, rest[1], mask)
        sum(losses).sum().backward()
        found.append((*losses, x.grad))
        assert all((part[~mask] == 0).all() for part in found[-1])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_losses_are_differentiable() -> None:
    logprobs, old, advantages, mask = ragged(3)
    logprobs.requires_grad_()
    assert gradcheck(lambda x: clipped_surrogate(x, old, advantages, mask, **CLIPS), (logprobs,))
    assert gradcheck(lambda x: reinforce(x, advantages, mask), (logprobs,))


def test_approx_kl_is_unbiased_for_the_kl_from_old_to_new() -> None:
    generator = torch.Generator().manual_seed(0)
    new, old = torch.randn(2, 6, generator=generator, dtype=torch.float64).log_softmax(-1)
    exact = (old.exp() * (old - new)).sum()  # sampled by the old policy
    torch.testing.assert_close((old.exp() * approx_kl(new, old)).sum(), exact)
    assert (approx_kl(new, old) >= 0).all()
    assert (approx_kl(old, old) == 0).all()


@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_a_ratio_on_its_bound_is_not_clipped_and_has_its_gradient(advantage: float) -> None:
    logprobs, real = one(-1.0).requires_grad_(), torch.ones(1, 1, dtype=torch.bool)
    bounds = {"clip_low": 0.0, "clip_high": 0.0}  # both bounds are 1, which is the ratio
    clipped_surrogate(logprobs, one(-1.0), one(advantage), real, **bounds).sum().backward()
    assert logprobs.grad.item() == -advantage
    assert not clipped(logprobs, one(-1.0), one(advantage), **bounds).item()


@given(st.floats(-2, 2), st.floats(-3, 3), st.floats(0, 1), st.floats(0, 2))
@settings(deadline=None, max_examples=100)
def test_clipped_surrogate_is_the_smaller_of_two_products(
    log_ratio: float, advantage: float, low: float, high: float
) -> None:
    ratio, real = math.exp(log_ratio), torch.ones(1, 1, dtype=torch.bool)
    bounded = min(max(ratio, 1 - low), 1 + high)
    found = clipped_surrogate(
        one(log_ratio - 1), one(-1.0), one(advantage), real, clip_low=low, clip_high=high
    )
    assert found.item() == pytest.approx(-min(ratio * advantage, bounded * advantage), rel=1e-12, abs=1e-12)


def test_approx_kl_is_differentiable() -> None:
    logprobs, old, _, _ = ragged(4)
    assert gradcheck(lambda x: approx_kl(x, old), (logprobs.requires_grad_(),))
