import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from rlhf.ops.preference_losses import (
    bradley_terry,
    centring,
    hinge,
    log1mexp,
    log_odds,
    prospect,
    squared_gap,
    unlikelihood,
)


def row(*x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def gradient(gap: float, label: float = 1.0, margin: float = 0.0) -> float:
    chosen = row(gap).requires_grad_()
    bradley_terry(chosen, row(0.0), row(margin), label).sum().backward()
    assert chosen.grad is not None
    return chosen.grad.item()


def test_loss_of_equal_scores_is_log_two() -> None:
    assert bradley_terry(row(3.0), row(3.0), row(0.0)).item() == pytest.approx(math.log(2), abs=1e-15)


@pytest.mark.parametrize("gap", [-3.0, -0.5, 0.0, 0.5, 3.0])
def test_gradient_is_the_probability_of_being_wrong(gap: float) -> None:
    assert gradient(gap) == pytest.approx(sigmoid(gap) - 1, abs=1e-12)


@pytest.mark.parametrize("gap", [-3.0, -0.5, 0.0, 0.5, 3.0])
def test_gradient_of_a_tie_is_antisymmetric(gap: float) -> None:
    assert gradient(gap, label=0.5) == pytest.approx(sigmoid(gap) - 0.5, abs=1e-12)
    assert gradient(-gap, label=0.5) == pytest.approx(-gradient(gap, label=0.5), abs=1e-12)


def test_label_zero_is_the_reversed_pair() -> None:
    chosen, rejected = row(0.3, -2.0), row(1.0, 0.5)
    reversed_pair = bradley_terry(rejected, chosen, row(0.0, 0.0))
    torch.testing.assert_close(bradley_terry(chosen, rejected, row(0.0, 0.0), row(0.0, 0.0)), reversed_pair)


def test_labels_may_differ_by_pair() -> None:
    found = bradley_terry(row(1.0, 1.0), row(0.0, 0.0), row(0.0, 0.0), row(1.0, 0.5))
    won, lost = math.log1p(math.exp(-1)), math.log1p(math.exp(1))
    torch.testing.assert_close(found, row(won, (won + lost) / 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_is_finite_and_linear_at_large_gaps(dtype: torch.dtype) -> None:
    chosen = torch.tensor([1e4, -1e4], dtype=dtype, requires_grad=True)
    found = bradley_terry(chosen, torch.zeros(2, dtype=dtype), torch.zeros(2, dtype=dtype))
    found.sum().backward()
    assert found.tolist() == [0.0, 1e4]
    assert chosen.grad.tolist() == [0.0, -1.0]


def test_margin_shifts_the_loss_by_exactly_itself() -> None:
    shifted = bradley_terry(row(2.0), row(0.5), row(0.75))
    torch.testing.assert_close(shifted, bradley_terry(row(1.25), row(0.5), row(0.0)))
    assert gradient(1.0, margin=1.0) == pytest.approx(-0.5)


def test_centring_is_the_squared_sum_of_a_pair() -> None:
    assert centring(row(2.0, -1.0), row(1.0, 1.0)).tolist() == [9.0, 0.0]


def test_preference_losses_are_differentiable() -> None:
    chosen, rejected = row(0.3, -1.0, 30.0).requires_grad_(), row(0.5, 1.0, -2.0).requires_grad_()
    assert gradcheck(lambda a, b: bradley_terry(a, b, row(0.1, 0.0, 0.2), 0.5), (chosen, rejected))
    assert gradcheck(centring, (chosen, rejected))


def test_ties_alone_drive_the_gap_to_zero() -> None:
    gap = row(2.0).requires_grad_()
    optimizer = torch.optim.SGD([gap], lr=2.0)
    for _ in range(200):
        optimizer.zero_grad()
        bradley_terry(gap, row(0.0), row(0.0), 0.5).sum().backward()
        optimizer.step()
    assert abs(gap.item()) < 1e-6


@given(st.floats(-20, 20), st.floats(-20, 20), st.floats(-3, 3), st.floats(0, 1))
@settings(deadline=None, max_examples=100)
def test_loss_is_the_likelihood_of_the_comparison(
    chosen: float, rejected: float, margin: float, label: float
) -> None:
    gap = chosen - rejected - margin
    expected = label * math.log1p(math.exp(-gap)) + (1 - label) * math.log1p(math.exp(gap))
    found = bradley_terry(row(chosen), row(rejected), row(margin), label)
    assert found.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("margin", [0.0, 0.75, -2.0])
def test_margin_shifts_the_best_gap_by_exactly_itself(margin: float) -> None:
    """The first wins four of five times: without a margin the best gap is logit 0.8 = log 4."""
    assert gradient(math.log(4) + margin, label=0.8, margin=margin) == pytest.approx(0, abs=1e-12)


# What is read of log-probs


def test_log1mexp_is_exact_near_both_ends() -> None:
    tiny, far = 1e-5, 60.0
    found = log1mexp(row(-tiny, -math.log(2), -1.0, -far))
    # 1 − e⁻ᵗ = t − t²/2 + t³/6 …, and log(1 − u) = −u − u²/2 …
    expected = [
        math.log(tiny - tiny**2 / 2 + tiny**3 / 6),
        -math.log(2),
        math.log(1 - math.exp(-1)),
        -math.exp(-far),
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_log1mexp_is_bounded_where_a_token_is_certain() -> None:
    x = row(0.0, -1e-9).requires_grad_()
    found = log1mexp(x)
    found.sum().backward()
    assert found.tolist() == pytest.approx([math.log(1e-6)] * 2, rel=1e-6)
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 0.0]


def test_log_odds_are_the_logit_of_the_probability() -> None:
    p = row(0.01, 0.5, 0.99)
    torch.testing.assert_close(log_odds(p.log()), torch.logit(p))


def test_unlikelihood_sums_over_the_tokens_of_the_response() -> None:
    logprobs = row(0.5, 0.25, 0.125).log()[None].requires_grad_()
    found = unlikelihood(logprobs, torch.tensor([[True, True, False]]))
    assert found.item() == pytest.approx(-math.log(0.5) - math.log(0.75))
    found.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist()[0] == pytest.approx([1.0, 1 / 3, 0.0])  # p/(1 − p)


def test_hinge_is_flat_beyond_its_margin() -> None:
    gap = row(-1.0, 0.5, 3.0).requires_grad_()
    found = hinge(gap, margin=2.0)
    found.sum().backward()
    assert found.tolist() == [3.0, 1.5, 0.0]
    assert gap.grad is not None
    assert gap.grad.tolist() == [-1.0, -1.0, 0.0]


def test_squared_gap_is_zero_at_one_over_twice_tau() -> None:
    assert squared_gap(row(5.0, 0.0), tau=0.1).tolist() == [0.0, 25.0]


def test_prospect_gives_no_gradient_to_its_baseline() -> None:
    rewards, baseline = row(0.2, 0.4).requires_grad_(), torch.tensor(0.3).requires_grad_()
    prospect(rewards, torch.tensor([True, False]), baseline, gain=1.0, loss=2.0).sum().backward()
    assert baseline.grad is None
    assert rewards.grad is not None
    s = sigmoid(0.1) * sigmoid(-0.1)
    assert rewards.grad.tolist() == pytest.approx([-s, 2 * s], rel=1e-6)
