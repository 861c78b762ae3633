"""Region tables and limits of the losses beside the clipped surrogate."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from rlhf.ops.policy_losses import (
    clipped,
    clipped_surrogate,
    clipped_weight,
    reinforce,
    sequence_log_ratio,
    token_ratio,
    unclipped_surrogate,
)

REAL = torch.ones(1, 1, dtype=torch.bool)
DUAL = {"clip_low": 0.2, "clip_high": 0.3, "dual_clip": 3.0}


def one(x: float) -> Tensor:
    return torch.tensor([[x]], dtype=torch.float64)


def ragged(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logprobs, noise, advantages = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([[5], [3], [1], [0]])
    return logprobs, logprobs + 0.3 * noise, advantages, mask


# ratio, advantage → loss, ∂loss/∂logprob, clipped: D38 with a dual clip, which adds the last region
DUAL_REGIONS = [
    (0.5, 2.0, -1.0, -1.0, False),
    (1.5, 2.0, -2.6, 0.0, True),
    (4.0, 2.0, -2.6, 0.0, True),
    (0.5, -2.0, 1.6, 0.0, True),
    (1.5, -2.0, 3.0, 3.0, False),
    (2.9, -2.0, 5.8, 5.8, False),
    (3.1, -2.0, 6.0, 0.0, True),
    (1e6, -2.0, 6.0, 0.0, True),
    (4.0, 0.0, 0.0, 0.0, False),
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "gradient", "outside"), DUAL_REGIONS)
def test_dual_clip_bounds_the_loss_of_a_negative_advantage(
    ratio: float, advantage: float, loss: float, gradient: float, outside: bool
) -> None:
    logprobs = one(math.log(ratio) - 1.0).requires_grad_()
    found = clipped_surrogate(logprobs, one(-1.0), one(advantage), REAL, **DUAL)
    found.sum().backward()
    assert found.item() == pytest.approx(loss, abs=1e-12)
    assert logprobs.grad.item() == pytest.approx(gradient, abs=1e-12)
    assert clipped(logprobs, one(-1.0), one(advantage), **DUAL).item() is outside


def test_a_ratio_on_the_dual_bound_is_not_clipped() -> None:
    old = one(-1.0)
    logprobs = old + one(3.0).log()
    bound = (logprobs - old).exp().item()  # 3 but for its rounding
    bounds = {"clip_low": 0.2, "clip_high": 0.3}
    assert not clipped(logprobs, old, one(-2.0), **bounds, dual_clip=bound).item()
    assert clipped(logprobs, old, one(-2.0), **bounds, dual_clip=math.nextafter(bound, 0)).item()


def test_the_ratio_of_padding_is_one() -> None:
    logprobs, old, _, mask = ragged()
    found = token_ratio(logprobs, old, mask)
    torch.testing.assert_close(found, torch.where(mask, logprobs.exp() / old.exp(), 1.0))


@pytest.mark.parametrize(("ratio", "advantage"), [(0.1, 2.0), (1.0, -3.0), (7.0, 2.0), (7.0, -2.0)])
def test_unclipped_surrogate_is_linear_in_the_ratio(ratio: float, advantage: float) -> None:
    logprobs = one(math.log(ratio) - 2.0).requires_grad_()
    found = unclipped_surrogate(logprobs, one(-2.0), one(advantage), REAL)
    found.sum().backward()
    assert found.item() == pytest.approx(-ratio * advantage)
    assert logprobs.grad.item() == pytest.approx(-ratio * advantage)


# ratio → weight between 0.5 and 3: ∂loss/∂logprob is −weight·A whatever the sign of A, never 0
WEIGHTS = [(0.1, 0.5), (0.5, 0.5), (0.9, 0.9), (1.0, 1.0), (2.0, 2.0), (3.0, 3.0), (50.0, 3.0)]


@pytest.mark.parametrize(("ratio", "weight"), WEIGHTS)
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_clipped_weight_keeps_the_gradient_of_every_token(
    ratio: float, weight: float, advantage: float
) -> None:
    logprobs = one(math.log(ratio) - 1.0).requires_grad_()
    found = clipped_weight(logprobs, one(-1.0), one(advantage), REAL, low=0.5, high=3.0)
    found.sum().backward()
    assert found.item() == pytest.approx(-weight * advantage * (math.log(ratio) - 1.0), abs=1e-12)
    assert logprobs.grad.item() == pytest.approx(-weight * advantage)


def test_sequence_log_ratio_is_the_mean_over_the_response() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -2.0, 99.0]], dtype=torch.float64)
    old = torch.tensor([[-1.3, -2.0, -2.4], [-1.5, -2.1, -99.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    found = sequence_log_ratio(logprobs, old, mask)
    torch.testing.assert_close(found, torch.tensor([[-0.1] * 3, [0.3, 0.3, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_gradient_of_the_sequence_ratio_is_that_of_its_definition(advantage: float) -> None:
    """The mean over a response of −s·A per token against −A·(π(y)/π_old(y))^(1/len) itself."""
    logprobs, old, _, mask = ragged(1)
    logprobs.requires_grad_()
    log_ratio = sequence_log_ratio(logprobs, old, mask)
    token = unclipped_surrogate(log_ratio, torch.zeros_like(old), torch.full_like(old, advantage), mask)
    lengths = mask.sum(1).clamp(min=1)
    (found,) = torch.autograd.grad((token.sum(1) / lengths).sum(), logprobs)
    whole = (torch.where(mask, logprobs - old, 0.0).sum(1) / lengths).exp()
    (expected,) = torch.autograd.grad((-advantage * whole[mask.any(1)]).sum(), logprobs)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def losses(logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> list[Tensor]:
    return [
        clipped_surrogate(logprobs, old, advantages, mask, **DUAL),
        unclipped_surrogate(logprobs, old, advantages, mask),
        clipped_weight(logprobs, old, advantages, mask, low=0.0, high=2.0),
        sequence_log_ratio(logprobs, old, mask),
    ]


def test_at_ratio_one_every_loss_has_the_gradient_of_reinforce() -> None:
    logprobs, _, advantages, mask = ragged()
    logprobs.requires_grad_()
    weights = torch.rand(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain = torch.autograd.grad((weights * reinforce(logprobs, advantages, mask)).sum(), logprobs)[0]
    *found, log_ratio = losses(logprobs, logprobs.detach(), advantages, mask)
    found.append(-log_ratio * advantages)
    for loss in found:
        gradient = torch.autograd.grad((weights * loss).sum(), logprobs)[0]
        torch.testing.assert_close(gradient, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("poison", [float("nan"), 1e9, -1e9])
def test_padding_never_reaches_loss_or_gradient(poison: float) -> None:
    logprobs, old, advantages, mask = ragged()
    found = []
    for fill in (0.0, poison):
        x = torch.where(mask, logprobs, fill).requires_grad_()
        each = losses(x, *(torch.where(mask, part, fill) for part in (old, advantages)), mask)
        sum(each).sum().backward()
        found.append((*each, x.grad))
        assert all((part[~mask] == 0).all() for part in found[-1])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_losses_are_differentiable() -> None:
    logprobs, old, advantages, mask = ragged(3)
    logprobs.requires_grad_()
    assert gradcheck(lambda x: clipped_surrogate(x, old, advantages, mask, **DUAL), (logprobs,))
    assert gradcheck(lambda x: unclipped_surrogate(x, old, advantages, mask), (logprobs,))
