import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from rlhf.ops.value_losses import clipped_value_loss, squared_error

REAL = torch.ones(1, 1, dtype=torch.bool)


def one(x: float) -> Tensor:
    return torch.tensor([[x]], dtype=torch.float64)


# V → loss, ∂loss/∂V for V_old = 0, R = 1, clip 0.2 (D35)
@pytest.mark.parametrize(
    ("value", "loss", "gradient"),
    [(0.1, 0.405, -0.9), (0.5, 0.32, 0.0), (-0.5, 1.125, -1.5), (1.5, 0.32, 0.0), (3.0, 2.0, 2.0)],
)
def test_clipped_value_loss_is_the_literal_table(value: float, loss: float, gradient: float) -> None:
    values = one(value).requires_grad_()
    found = clipped_value_loss(values, one(0.0), one(1.0), REAL, clip=0.2)
    found.sum().backward()
    assert found.item() == pytest.approx(loss, abs=1e-12)
    assert values.grad is not None
    assert values.grad.item() == pytest.approx(gradient, abs=1e-12)


# the same below the old value: V_old = 0, R = −1
@pytest.mark.parametrize(
    ("value", "loss", "gradient"),
    [(-0.1, 0.405, 0.9), (-0.5, 0.32, 0.0), (0.5, 1.125, 1.5), (-1.5, 0.32, 0.0), (-3.0, 2.0, -2.0)],
)
def test_clipped_value_loss_of_a_falling_value_mirrors_that_of_a_rising_one(
    value: float, loss: float, gradient: float
) -> None:
    values = one(value).requires_grad_()
    found = clipped_value_loss(values, one(0.0), one(-1.0), REAL, clip=0.2)
    found.sum().backward()
    assert found.item() == pytest.approx(loss, abs=1e-12)
    assert values.grad.item() == pytest.approx(gradient, abs=1e-12)


@given(*[st.floats(-3, 3)] * 3, st.floats(0.01, 2))
@settings(deadline=None, max_examples=100)
def test_clipped_value_loss_is_the_larger_of_two_errors(
    value: float, old: float, target: float, clip: float
) -> None:
    near = min(max(value, old - clip), old + clip)
    found = clipped_value_loss(one(value), one(old), one(target), REAL, clip=clip)
    expected = max((value - target) ** 2, (near - target) ** 2) / 2
    assert found.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_squared_error_is_half_the_square() -> None:
    values = one(3.0).requires_grad_()
    loss = squared_error(values, one(1.0), REAL)
    loss.sum().backward()
    assert (loss.item(), values.grad.item()) == (2.0, 2.0)


def test_a_wide_clip_is_the_squared_error() -> None:
    generator = torch.Generator().manual_seed(0)
    values, old, returns = torch.randn(3, 4, 5, generator=generator)
    mask = torch.arange(5) < torch.tensor([[5], [3], [1], [0]])
    assert torch.equal(
        clipped_value_loss(values, old, returns, mask, clip=100.0), squared_error(values, returns, mask)
    )


@pytest.mark.parametrize("poison", [float("nan"), 1e9, -1e9])
def test_padding_never_reaches_loss_or_gradient(poison: float) -> None:
    generator = torch.Generator().manual_seed(1)
    values, old, returns = torch.randn(3, 4, 5, generator=generator)
    mask = torch.arange(5) < torch.tensor([[5], [3], [1], [0]])
    found = []
    for fill in (0.0, poison):
        x = torch.where(mask, values, fill).requires_grad_()
        rest = [torch.where(mask, part, fill) for part in (old, returns)]
        losses = clipped_value_loss(x, *rest, mask, clip=0.2), squared_error(x, rest[1], mask)
        sum(losses).sum().backward()
        found.append((*losses, x.grad))
        assert all((part[~mask] == 0).all() for part in found[-1])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_value_losses_are_differentiable() -> None:
    generator = torch.Generator().manual_seed(2)
    values, old, returns = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([[5], [3], [1], [0]])
    values.requires_grad_()
    assert gradcheck(lambda x: clipped_value_loss(x, old, returns, mask, clip=0.2), (values,))
    assert gradcheck(lambda x: squared_error(x, returns, mask), (values,))
