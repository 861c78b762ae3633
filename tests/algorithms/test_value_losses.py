"""The maths is tested in tests/ops/test_value_losses.py; here, that each component does its own."""

import pytest
import torch
from torch.autograd import gradcheck

from rlhf.algorithms.value_losses import ClippedValueLoss, SquaredError

REAL = torch.ones(1, 1, dtype=torch.bool)
V, OLD, R = torch.tensor([[0.5]]), torch.tensor([[0.0]]), torch.tensor([[1.0]])


@pytest.mark.parametrize(
    ("loss", "expected"),
    [(ClippedValueLoss(), 0.32), (ClippedValueLoss(clip=0.4), 0.18), (SquaredError(), 0.125)],
)
def test_each_value_loss_computes_its_own(loss, expected: float) -> None:
    assert loss(V, OLD, R, REAL).item() == pytest.approx(expected)


def test_squared_error_ignores_the_old_values() -> None:
    assert SquaredError()(V, torch.tensor([[torch.nan]]), R, REAL).item() == 0.125


def test_a_clip_that_holds_everything_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ClippedValueLoss.clip must be positive, got 0.0"):
        ClippedValueLoss(clip=0.0)


def test_a_value_may_move_by_two_tenths_unless_said() -> None:
    assert ClippedValueLoss().clip == 0.2


@pytest.mark.parametrize("loss", [ClippedValueLoss(), SquaredError()])
def test_value_losses_are_differentiable(loss) -> None:
    values, old, returns = torch.randn(
        3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    mask = torch.arange(4) < torch.tensor([[4], [2]])
    assert gradcheck(lambda x: loss(x, old, returns, mask), (values.requires_grad_(),))
