import pytest
import torch
from torch import Tensor

from rlhf.algorithms.advantages import GAE, AdvantageEstimator, GroupRelative, LeaveOneOut

ESTIMATORS = [GAE(), GAE(whiten=False), LeaveOneOut(), GroupRelative(), GroupRelative(divide_by_std=False)]
MASK = torch.arange(5) < torch.tensor([[5], [2], [4], [1], [3], [3]])
GROUP = torch.tensor([4, 9, 4, 9, 9, 4])


def draws() -> tuple[Tensor, Tensor]:
    rewards, values = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return rewards, values


def test_gae_whitens_advantages_and_leaves_returns_bitwise_alone(one_rank) -> None:
    rewards, values = draws()
    plain = GAE(whiten=False)(rewards, values, MASK, GROUP, one_rank)
    whitened = GAE()(rewards, values, MASK, GROUP, one_rank)
    assert torch.equal(plain.returns, whitened.returns)
    torch.testing.assert_close(plain.returns - plain.advantages, torch.where(MASK, values, 0.0))
    kept = plain.advantages[MASK]
    expected = (kept - kept.mean()) / (kept.var(correction=0) + 1e-8).sqrt()
    torch.testing.assert_close(whitened.advantages[MASK], expected)


def test_gae_reads_its_discount_and_its_lambda(one_rank) -> None:
    rewards, values, real = torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2), torch.ones(1, 2).bool()
    found = GAE(gamma=0.5, lam=0.25, whiten=False)(rewards, values, real, GROUP[:1], one_rank)
    assert found.advantages.tolist() == [[0.125, 1.0]]


def test_gae_without_values_is_refused(one_rank) -> None:
    with pytest.raises(ValueError, match=r"^GAE needs the values of a critic, got None$"):
        GAE()(draws()[0], None, MASK, GROUP, one_rank)


def test_leave_one_out_compares_whole_returns_and_marks_every_token(one_rank) -> None:
    rewards = torch.tensor([[1.0, 0.0], [0.5, 1.5], [3.0, 99.0], [-1.0, 5.0]])  # returns 1, 2, 3, 4
    mask = torch.tensor([[True, True], [True, True], [True, False], [True, True]])
    found = LeaveOneOut()(rewards, None, mask, torch.zeros(4, dtype=torch.int64), one_rank)
    expected = torch.tensor([[-2.0, -2.0], [-2 / 3, -2 / 3], [2 / 3, 0.0], [2.0, 2.0]])
    torch.testing.assert_close(found.advantages, expected)
    assert found.returns is None


def test_group_relative_is_the_literal_example_in_float32(one_rank) -> None:
    rewards = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    found = GroupRelative()(
        rewards, None, torch.ones(4, 1).bool(), torch.zeros(4, dtype=torch.int64), one_rank
    )
    expected = torch.tensor([[-1.16180501], [-0.38726834], [0.38726834], [1.16180501]])
    torch.testing.assert_close(found.advantages, expected)


@pytest.mark.parametrize("estimator", [LeaveOneOut(), GroupRelative(), GroupRelative(divide_by_std=False)])
def test_adding_a_constant_to_every_score_changes_no_group_advantage(
    estimator: AdvantageEstimator, one_rank
) -> None:
    rewards = torch.randint(-8, 8, (6, 5), generator=torch.Generator().manual_seed(0)).double()
    shifted = rewards.clone()
    shifted[:, 0] += 64.0  # exact in binary
    first, second = (estimator(x, None, MASK, GROUP, one_rank).advantages for x in (rewards, shifted))
    assert torch.equal(first, second)


@pytest.mark.parametrize("size", [2, 3, 7, 16, 64])
@pytest.mark.parametrize("estimator", [LeaveOneOut(), GroupRelative(eps=1e-8)])
def test_equal_scores_have_exactly_no_advantage(estimator: AdvantageEstimator, size: int, one_rank) -> None:
    scores = torch.randn(20, generator=torch.Generator().manual_seed(size)) * 100
    rewards = torch.zeros(20 * size, 3)
    rewards[:, 2] = scores.repeat_interleave(size)
    group = torch.arange(20).repeat_interleave(size)
    found = estimator(rewards, None, torch.ones_like(rewards).bool(), group, one_rank)
    assert (found.advantages == 0).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_permuting_rows_permutes_advantages(estimator: AdvantageEstimator, one_rank) -> None:
    rewards, values = draws()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    first = estimator(rewards, values, MASK, GROUP, one_rank).advantages[order]
    second = estimator(rewards[order], values[order], MASK[order], GROUP[order], one_rank).advantages
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_two_ranks_are_one(estimator: AdvantageEstimator, across_ranks, one_rank) -> None:
    rewards, values = draws()
    group = torch.tensor([1, 1, 1, 2, 2, 2])  # whole on a rank
    whole = estimator(rewards, values, MASK, group, one_rank).advantages

    def work(rank, total):
        rows = slice(3 * rank, 3 * rank + 3)
        return estimator(rewards[rows], values[rows], MASK[rows], group[rows], total).advantages

    torch.testing.assert_close(torch.cat(across_ranks(work, 2)), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("poison", [float("nan"), 1e9, -1e9])
def test_padding_never_reaches_an_advantage(estimator: AdvantageEstimator, poison: float, one_rank) -> None:
    clean = estimator(*draws(), MASK, GROUP, one_rank)
    dirty = estimator(*(torch.where(MASK, x, poison) for x in draws()), MASK, GROUP, one_rank)
    assert torch.equal(clean.advantages, dirty.advantages)
    assert (clean.advantages[~MASK] == 0).all()
    if clean.returns is not None:
        assert torch.equal(clean.returns, dirty.returns)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_advantages_keep_the_dtype_of_the_rewards(estimator: AdvantageEstimator, one_rank) -> None:
    rewards, values = (x.float() for x in draws())
    assert estimator(rewards, values, MASK, GROUP, one_rank).advantages.dtype == torch.float32


@pytest.mark.parametrize(
    ("component", "values", "message"),
    [
        (GAE, {"gamma": 1.5}, "GAE.gamma must be from 0 to 1, got 1.5"),
        (GAE, {"lam": -0.1}, "GAE.lam must be from 0 to 1, got -0.1"),
        (GAE, {"lam": float("nan")}, "GAE.lam must be from 0 to 1, got nan"),
        (GroupRelative, {"eps": 0.0}, "GroupRelative.eps must be positive, got 0.0"),
    ],
)
def test_values_out_of_range_are_refused(component, values, message) -> None:
    with pytest.raises(ValueError, match=message):
        component(**values)


def test_defaults_are_the_published_ones() -> None:
    assert GAE() == GAE(gamma=1.0, lam=0.95, whiten=True)
    assert GroupRelative() == GroupRelative(divide_by_std=True, eps=1e-4)


@pytest.mark.parametrize("bound", [0.0, 1.0])
def test_discount_and_lambda_may_be_zero_or_one(bound: float) -> None:
    assert (GAE(gamma=bound).gamma, GAE(lam=bound).lam) == (bound, bound)
