import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from rlhf.algorithms.preferences import BradleyTerry


def row(*x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def test_loss_is_the_hand_worked_pair() -> None:
    found = BradleyTerry()(row(2.0, 1.0), row(1.0, 2.0), row(0.0, 0.0))
    torch.testing.assert_close(found, row(math.log1p(math.exp(-1)), math.log1p(math.exp(1))))


def test_margin_is_read() -> None:
    found = BradleyTerry()(row(2.0), row(1.0), row(1.0))
    assert found.item() == pytest.approx(math.log(2))


def test_centring_is_added_with_its_weight() -> None:
    found = BradleyTerry(center=0.25)(row(3.0), row(3.0), row(0.0))
    assert found.item() == pytest.approx(math.log(2) + 9.0)


def test_a_little_centring_pins_the_mean_and_leaves_the_gap() -> None:
    """The first wins four of five comparisons: Δ = logit 0.8 = log 4, whatever the mean."""
    scores = row(5.0, 2.0).requires_grad_()
    optimizer = torch.optim.SGD([scores], lr=0.5)
    for _ in range(400):
        optimizer.zero_grad()
        first, second, none = scores[:1], scores[1:], row(0.0)
        loss = BradleyTerry(center=0.05)
        (0.8 * loss(first, second, none) + 0.2 * loss(second, first, none)).sum().backward()
        optimizer.step()
    gap, mean = (scores[0] - scores[1]).item(), scores.mean().item()
    assert gap == pytest.approx(math.log(4), abs=1e-6)
    assert mean == pytest.approx(0, abs=1e-6)


def test_negative_centring_is_refused() -> None:
    with pytest.raises(ValueError, match=r"BradleyTerry.center must not be negative, got -1.0"):
        BradleyTerry(center=-1.0)


def test_scores_are_not_centred_unless_said() -> None:
    assert BradleyTerry().center == 0.0
    assert BradleyTerry()(row(3.0), row(3.0), row(0.0)).item() == pytest.approx(math.log(2))


def test_loss_of_a_pair_is_differentiable() -> None:
    chosen, rejected = row(0.3, -1.0, 3.0).requires_grad_(), row(0.5, 1.0, -2.0).requires_grad_()
    assert gradcheck(lambda a, b: BradleyTerry(center=0.1)(a, b, row(0.1, 0.0, 0.2)), (chosen, rejected))
