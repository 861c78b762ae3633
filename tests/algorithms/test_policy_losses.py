"""The maths is tested in tests/ops/test_policy_losses.py; here, that each component does its own."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from rlhf.algorithms.policy_losses import Clipped, Reinforce

REAL = torch.ones(1, 4, dtype=torch.bool)
OLD = torch.full((1, 4), -2.0)
RATIOS = torch.tensor([[0.5, 0.85, 1.25, 1.5]])
NEW = OLD + RATIOS.log()


def test_clipped_reads_both_of_its_bounds() -> None:
    loss = Clipped(clip_low=0.1, clip_high=0.3)
    up, down = torch.ones(1, 4), -torch.ones(1, 4)
    torch.testing.assert_close(loss(NEW, OLD, up, REAL), -torch.tensor([[0.5, 0.85, 1.25, 1.3]]))
    torch.testing.assert_close(loss(NEW, OLD, down, REAL), torch.tensor([[0.9, 0.9, 1.25, 1.5]]))
    assert loss.clipped(NEW, OLD, up).tolist() == [[False, False, False, True]]
    assert loss.clipped(NEW, OLD, down).tolist() == [[True, True, False, False]]


def test_defaults_of_both_clips_are_two_tenths() -> None:
    assert (Clipped().clip_low, Clipped().clip_high) == (0.2, 0.2)


def test_reinforce_ignores_the_old_policy_and_clips_nothing() -> None:
    loss = Reinforce()
    advantages = torch.tensor([[1.0, -1.0, 2.0, 0.0]])
    found = loss(NEW, torch.full((1, 4), math.nan), advantages, REAL)
    torch.testing.assert_close(found, -advantages * NEW)
    assert not loss.clipped(NEW, OLD, advantages).any()


@pytest.mark.parametrize("loss", [Clipped(), Reinforce()])
def test_diagnostics_are_bool_of_the_same_shape(loss) -> None:
    found = loss.clipped(NEW, OLD, OLD)
    assert (found.dtype, found.shape) == (torch.bool, NEW.shape)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"clip_low": -0.1}, "Clipped.clip_low must be from 0 to 1, got -0.1"),
        ({"clip_low": 1.1}, "Clipped.clip_low must be from 0 to 1, got 1.1"),
        ({"clip_high": -0.1}, "Clipped.clip_high must not be negative, got -0.1"),
    ],
)
def test_values_out_of_range_are_refused(values, message) -> None:
    with pytest.raises(ValueError, match=message):
        Clipped(**values)


@pytest.mark.parametrize("bounds", [{"clip_low": 0.0}, {"clip_low": 1.0}, {"clip_high": 0.0}])
def test_a_clip_may_lie_on_its_limit(bounds: dict[str, float]) -> None:
    loss = Clipped(**bounds)
    assert [getattr(loss, name) for name in bounds] == list(bounds.values())


@pytest.mark.parametrize("loss", [Clipped(), Reinforce()])
def test_policy_losses_are_differentiable(loss) -> None:
    generator = torch.Generator().manual_seed(0)
    logprobs, noise, advantages = torch.randn(3, 2, 4, generator=generator, dtype=torch.float64)
    mask, old = torch.arange(4) < torch.tensor([[4], [2]]), logprobs + 0.3 * noise
    assert gradcheck(lambda x: loss(x, old, advantages, mask), (logprobs.requires_grad_(),))
