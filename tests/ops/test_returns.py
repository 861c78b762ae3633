import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from rlhf.ops.returns import gae, returns_to_go


def episode(seed: int = 0, rows: int = 5, width: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, rows, width, generator=generator, dtype=torch.float64)
    lengths = torch.randint(0, width + 1, (rows,), generator=generator)
    return rewards, values, torch.arange(width) < lengths[:, None]


def quadratic(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Σ_l (γλ)^l δ_{t+l}, every term written out, over the real tokens alone."""
    advantages = torch.zeros_like(rewards)
    for row, length in enumerate(mask.sum(1).tolist()):
        for t in range(length):
            for k in range(t, length):
                following = values[row, k + 1] if k + 1 < length else 0.0
                delta = rewards[row, k] + gamma * following - values[row, k]
                advantages[row, t] += (gamma * lam) ** (k - t) * delta
    return advantages


def test_gae_is_the_literal_example() -> None:
    rewards = torch.tensor([[-0.1, 0.2, 1.0]], dtype=torch.float64)
    values = torch.tensor([[0.5, 0.4, 0.3]], dtype=torch.float64)
    advantages, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=1.0, lam=0.95)
    torch.testing.assert_close(advantages, torch.tensor([[0.52675, 0.765, 0.7]], dtype=torch.float64))
    torch.testing.assert_close(returns, torch.tensor([[1.02675, 1.165, 1.0]], dtype=torch.float64))


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None, max_examples=40)
def test_gae_is_the_quadratic_sum(seed: int, gamma: float, lam: float) -> None:
    rewards, values, mask = episode(seed)
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    expected = quadratic(rewards, values, mask, gamma, lam)
    torch.testing.assert_close(advantages, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(returns, torch.where(mask, expected + values, 0.0), rtol=1e-10, atol=1e-12)


def test_lambda_one_is_the_return_minus_the_value() -> None:
    rewards, values, mask = episode(1)
    to_go = torch.where(mask, rewards, 0.0).flip(1).cumsum(1).flip(1)
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    torch.testing.assert_close(returns, torch.where(mask, to_go, 0.0))
    torch.testing.assert_close(advantages, torch.where(mask, to_go - values, 0.0))


def test_lambda_zero_is_the_temporal_difference_error() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0, 9.0]])
    values = torch.tensor([[0.5, 0.25, 0.125, 9.0]])
    mask = torch.tensor([[True, True, True, False]])
    advantages, _ = gae(rewards, values, mask, gamma=0.5, lam=0.0)
    # 1 + .125 − .5, 2 + .0625 − .25, and 4 + 0 − .125: nothing follows the last token
    assert advantages.tolist() == [[0.625, 1.8125, 3.875, 0.0]]


def test_reaching_the_length_limit_bootstraps_nothing() -> None:
    rewards, values = torch.zeros(1, 3), torch.full((1, 3), 5.0)
    advantages, _ = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=1.0, lam=0.0)
    assert advantages.tolist() == [[0.0, 0.0, -5.0]]


def test_a_padded_row_is_the_row_alone() -> None:
    rewards, values, mask = episode(2)
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=0.8)
    for row, length in enumerate(mask.sum(1).tolist()):
        cut = slice(row, row + 1), slice(0, length)
        alone = gae(rewards[cut], values[cut], mask[cut], gamma=0.9, lam=0.8)
        torch.testing.assert_close(advantages[cut], alone[0], rtol=0, atol=0)
        torch.testing.assert_close(returns[cut], alone[1], rtol=0, atol=0)


@pytest.mark.parametrize("poison", [float("nan"), 1e9, -1e9])
def test_padding_never_reaches_the_result(poison: float) -> None:
    rewards, values, mask = episode(3)
    dirty = [torch.where(mask, x, poison) for x in (rewards, values)]
    for found, clean in zip(
        gae(*dirty, mask, gamma=0.9, lam=0.95), gae(rewards, values, mask, gamma=0.9, lam=0.95), strict=True
    ):
        assert torch.equal(found, clean)
        assert (found[~mask] == 0).all()


def test_gae_keeps_its_arguments_and_their_dtype() -> None:
    rewards, values, mask = episode(4)
    before = rewards.clone(), values.clone()
    advantages, _ = gae(rewards.float(), values.float(), mask, gamma=1.0, lam=0.95)
    gae(rewards, values, mask, gamma=1.0, lam=0.95)
    assert advantages.dtype == torch.float32
    assert torch.equal(rewards, before[0])
    assert torch.equal(values, before[1])


def test_returns_to_go_sum_the_rewards_that_follow() -> None:
    rewards, _, mask = episode(6)
    expected = torch.zeros_like(rewards)
    for row, length in enumerate(mask.sum(1).tolist()):
        for t in range(length):
            expected[row, t] = sum(rewards[row, k] for k in range(t, length))
    torch.testing.assert_close(returns_to_go(torch.where(mask, rewards, float("nan")), mask), expected)


def test_returns_to_go_are_gae_without_a_critic() -> None:
    rewards, values, mask = episode(7)
    whole, _ = gae(rewards, torch.zeros_like(values), mask, gamma=1.0, lam=1.0)
    torch.testing.assert_close(returns_to_go(rewards, mask), whole)


def test_gae_is_differentiable() -> None:
    rewards, values, mask = episode(5, rows=3, width=4)
    inputs = rewards.requires_grad_(), values.requires_grad_()
    assert gradcheck(lambda r, v: gae(r, v, mask, gamma=0.9, lam=0.8), inputs)


def wrong(rewards: Tensor, values: Tensor, mask: Tensor, *, bootstrap: bool, unmasked: bool) -> Tensor:
    """The quadratic sum with what follows the last real token taken from somewhere else than 0."""
    expected = quadratic(rewards, values, mask, 0.9, 0.8)
    for row, length in enumerate(mask.sum(1).tolist()):
        if not length:
            continue
        at_limit = length == mask.shape[1]
        following = values[row, -1] if bootstrap and at_limit else 0.0  # V(s_T) from itself
        following = values[row, length] if unmasked and not at_limit else following
        for t in range(length):
            expected[row, t] += (0.9 * 0.8) ** (length - 1 - t) * 0.9 * following
    return expected


def test_gae_with_a_value_after_the_last_token_is_something_else() -> None:
    """Negative controls (numerics E4), on rows of which some reach the limit and some do not."""
    rewards, values, _ = episode(6)
    mask = torch.arange(6) < torch.tensor([[6], [3], [1], [6], [4]])
    found, _ = gae(rewards, values, mask, gamma=0.9, lam=0.8)
    torch.testing.assert_close(wrong(rewards, values, mask, bootstrap=False, unmasked=False), found)
    for mistake in ({"bootstrap": True, "unmasked": False}, {"bootstrap": False, "unmasked": True}):
        assert (wrong(rewards, values, mask, **mistake) - found).abs().max() > 0.1
