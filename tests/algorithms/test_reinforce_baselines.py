"""REINFORCE with its baselines, and globally whitened returns: hand-worked numbers and loops."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.advantages import (
    AdvantageEstimator,
    GreedyBaseline,
    MovingAverage,
    NoBaseline,
    WhitenedGroupDeviation,
    WhitenedReturns,
)

ESTIMATORS = [NoBaseline(), MovingAverage(), GreedyBaseline(), WhitenedReturns(), WhitenedGroupDeviation()]
MASK = torch.arange(5) < torch.tensor([[5], [2], [4], [1], [3], [3]])
GROUP = torch.tensor([4, 9, 4, 9, 9, 4])
BASELINES = torch.tensor([0.5, -1.0, 2.0, 0.25, 0.0, -3.0], dtype=torch.float64)
REWARDS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def advantages(estimator: AdvantageEstimator, total, rewards: Tensor = REWARDS) -> Tensor:
    found = estimator(rewards, None, MASK, GROUP, total, BASELINES)
    assert found.returns is None
    return found.advantages


def whole_return(row: int) -> float:
    return sum(REWARDS[row, t].item() for t in range(5) if MASK[row, t])


@pytest.mark.parametrize(
    ("estimator", "reads_baseline"),
    [(NoBaseline(), False), (MovingAverage(), True), (GreedyBaseline(), True)],
)
def test_every_token_gets_the_whole_return_minus_the_baseline(estimator, reads_baseline, one_rank) -> None:
    expected = torch.zeros(6, 5, dtype=torch.float64)
    for row in range(6):
        for t in range(int(MASK[row].sum())):
            expected[row, t] = whole_return(row) - (BASELINES[row].item() if reads_baseline else 0.0)
    torch.testing.assert_close(advantages(estimator, one_rank), expected)


def test_whitened_returns_are_the_loop_over_all_tokens(one_rank) -> None:
    to_go = {
        (row, t): sum(REWARDS[row, s].item() for s in range(t, int(MASK[row].sum())))
        for row in range(6)
        for t in range(int(MASK[row].sum()))
    }
    mean = sum(to_go.values()) / len(to_go)
    deviation = math.sqrt(sum((g - mean) ** 2 for g in to_go.values()) / len(to_go))  # population
    expected = torch.zeros(6, 5, dtype=torch.float64)
    for place, g in to_go.items():
        expected[place] = (g - mean) / deviation
    torch.testing.assert_close(advantages(WhitenedReturns(), one_rank), expected, rtol=1e-7, atol=1e-7)


def test_whitened_group_deviation_is_the_loop_over_groups_and_then_over_all_tokens(one_rank) -> None:
    members = {g: [row for row in range(6) if GROUP[row] == g] for g in GROUP.tolist()}
    centred = [
        whole_return(row) - sum(map(whole_return, members[g])) / len(members[g])
        for row, g in enumerate(GROUP.tolist())
    ]
    tokens = [centred[row] for row in range(6) for _ in range(int(MASK[row].sum()))]
    mean = sum(tokens) / len(tokens)
    deviation = math.sqrt(sum((a - mean) ** 2 for a in tokens) / len(tokens))
    expected = torch.where(MASK, ((torch.tensor(centred).double() - mean) / deviation)[:, None], 0.0)
    found = advantages(WhitenedGroupDeviation(), one_rank)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


def test_the_moving_average_is_first_a_plain_mean_and_then_exponential() -> None:
    estimator, baseline, found = MovingAverage(decay=0.75), 0.0, []
    for rollouts, mean_return in enumerate([8.0, 4.0, 6.0, 2.0, 9.0, 1.0]):
        baseline = estimator.next_baseline(baseline, mean_return, rollouts)
        found.append(baseline)
    # 8; (8+4)/2; (8+4+6)/3; (8+4+6+2)/4; then ¾·5 + ¼·9 = 6; ¾·6 + ¼·1 = 4.75
    assert found == pytest.approx([8.0, 6.0, 6.0, 5.0, 6.0, 4.75])


@pytest.mark.parametrize("estimator", [e for e in ESTIMATORS if not isinstance(e, MovingAverage)])
def test_others_keep_no_running_mean(estimator: AdvantageEstimator) -> None:
    assert estimator.next_baseline(0.0, 7.0, 3) == 0.0


def test_each_says_what_it_needs() -> None:
    needs = [(type(e).__name__, e.needs_critic, e.needs_groups, e.needs_greedy) for e in ESTIMATORS]
    assert needs == [
        ("NoBaseline", False, False, False),
        ("MovingAverage", False, False, False),
        ("GreedyBaseline", False, False, True),
        ("WhitenedReturns", False, False, False),
        ("WhitenedGroupDeviation", False, True, False),
    ]


@pytest.mark.parametrize("estimator", [WhitenedReturns(), WhitenedGroupDeviation()])
def test_moments_are_those_of_all_ranks(estimator: AdvantageEstimator, across_ranks, one_rank) -> None:
    group = torch.tensor([1, 1, 1, 2, 2, 2])  # whole on a rank
    whole = estimator(REWARDS, None, MASK, group, one_rank).advantages

    def work(rank, total):
        rows = slice(3 * rank, 3 * rank + 3)
        return estimator(REWARDS[rows], None, MASK[rows], group[rows], total).advantages

    torch.testing.assert_close(torch.cat(across_ranks(work, 2)), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("poison", [float("nan"), 1e9, -1e9])
def test_padding_never_reaches_an_advantage(estimator: AdvantageEstimator, poison: float, one_rank) -> None:
    dirty = advantages(estimator, one_rank, torch.where(MASK, REWARDS, poison))
    assert torch.equal(dirty, advantages(estimator, one_rank))
    assert (dirty[~MASK] == 0).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_advantages_keep_the_dtype_of_the_rewards(estimator: AdvantageEstimator, one_rank) -> None:
    assert advantages(estimator, one_rank, REWARDS.float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (MovingAverage(), "MovingAverage needs the mean return of past rollouts, got None"),
        (GreedyBaseline(), "GreedyBaseline needs the return of a greedy response to each prompt, got None"),
    ],
)
def test_a_baseline_that_was_not_given_is_refused(estimator, message: str, one_rank) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        estimator(REWARDS, None, MASK, GROUP, one_rank)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_mean_that_never_moves_is_refused(decay: float) -> None:
    message = re.escape(f"MovingAverage.decay must be at least 0 and below 1, got {decay}")
    with pytest.raises(ValueError, match=message):
        MovingAverage(decay=decay)


def test_a_mean_may_forget_everything() -> None:
    assert MovingAverage(decay=0.0).next_baseline(5.0, 2.0, 9) == 2.0
