"""Imitation and the horizon: the road itself, and what behaviour cloning and DAgger pay on it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from benchmarks.learning import queries
from benchmarks.learning.horizons import METHODS, measured, picture, slope, table
from benchmarks.learning.road import (
    ACTIONS,
    PLACES,
    Road,
    expert,
    irreducible_error,
    learner,
    probabilities,
)
from rlhf.ops.preference_losses import bradley_terry


def test_the_expert_stays_on_the_road() -> None:
    road = Road.drawn(0)
    assert road.cost(probabilities(expert(road)), 64) < 1e-4


def test_a_policy_that_is_wrong_everywhere_pays_from_its_second_step_on() -> None:
    road = Road.drawn(0)
    policy = torch.full((ACTIONS, 2 * PLACES), 1 / (ACTIONS - 1))
    policy[road.right, torch.arange(2 * PLACES)] = 0
    assert road.cost(policy, 10) == pytest.approx(9)


def test_cost_of_a_policy_that_never_recovers_by_pencil() -> None:
    """In the ditch at step t with probability 1 − (1 − ε)^t."""
    road, epsilon, T = Road.drawn(1), 0.1, 12
    policy = torch.zeros(ACTIONS, 2 * PLACES, dtype=torch.float64)
    policy[(road.right + 1) % ACTIONS, torch.arange(2 * PLACES)] = epsilon
    policy[road.right[:PLACES], torch.arange(PLACES)] = 1 - epsilon
    policy[(road.right[PLACES:] + 1) % ACTIONS, torch.arange(PLACES, 2 * PLACES)] = 1
    expected = sum(1 - (1 - epsilon) ** t for t in range(T))
    assert road.cost(policy, T) == pytest.approx(expected)


def test_the_cost_is_what_trajectories_pay_on_average() -> None:
    road, T = Road.drawn(2), 9
    policy = probabilities(learner(road, 0))
    generator = torch.Generator().manual_seed(0)
    state, paid = torch.randint(PLACES, (20_000,), generator=generator), 0.0
    for _ in range(T):
        paid += float((state >= PLACES).double().mean())
        state = road.after(state, torch.multinomial(policy.T[state], 1, generator=generator)[:, 0])
    assert paid == pytest.approx(road.cost(policy, T), rel=0.01)


def test_no_learner_is_surer_than_the_cap_allows() -> None:
    road = Road.drawn(0)
    student = learner(road, 0)
    student.head.weight.data = 1e3 * (2 * road.expert().sign() - 1)
    wrong = 1 - probabilities(student)[road.right, torch.arange(2 * PLACES)]
    torch.testing.assert_close(wrong, torch.full((2 * PLACES,), irreducible_error()))


def test_the_slope_of_a_power_is_its_exponent() -> None:
    assert slope({T: 3.0 * T**2 for T in (2, 4, 8)}) == pytest.approx(2)


def test_table_and_picture_show_every_method(tmp_path: Path) -> None:
    lines = [
        {"method": method, "horizon": T, "seed": seed, "cost": T + seed}
        for method in METHODS
        for T in (2, 4)
        for seed in (0, 1)
    ]
    shown = table(lines)
    assert all(method in shown for method in METHODS)
    assert "| 4 | 4.500 ± 0.500 | 4.500 ± 0.500 | 1.0 |" in shown
    picture(lines, tmp_path / "horizons.png")
    assert (tmp_path / "horizons.png").stat().st_size > 1000


@pytest.mark.slow
def test_error_grows_more_slowly_with_the_horizon_than_that_of_behaviour_cloning() -> None:
    """As wrong as each other where the expert goes: cloning pays quadratically, DAgger linearly."""
    costs: dict[str, dict[int, float]] = {method: {} for method in METHODS}
    for method in METHODS:
        for horizon in (8, 16, 32, 64):
            found = [measured(method, horizon=horizon, rounds=12, seed=seed) for seed in range(2)]
            costs[method][horizon] = sum(one["cost"] for one in found) / len(found)
            assert all(one["error_on_the_road"] < 3 * irreducible_error() for one in found)
    cloned, dagger = costs["behaviour cloning"], costs["DAgger"]
    assert slope(cloned) > 1.5
    assert slope(dagger) < 1.25
    assert cloned[64] > 5 * dagger[64]
    assert math.isfinite(cloned[64])


def test_members_of_the_ensemble_minimise_their_weighted_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    answers = (torch.rand(30, generator=generator) < 0.5).double()
    weights = torch.rand(2, 30, generator=generator, dtype=torch.float64)
    centres = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    theta = queries.fitted(pairs, answers, weights, centres, start=centres).requires_grad_()
    loss = bradley_terry(theta @ pairs.T, torch.zeros(30), torch.zeros(30), answers)
    ((weights * loss).sum() + (theta - centres).square().sum() / 2).backward()
    assert theta.grad is not None
    assert theta.grad.abs().max() < 1e-8


def test_labels_are_counted_to_where_the_accuracy_stays() -> None:
    assert queries.labels_for([0.5, 0.9, 0.7, 0.8, 0.9], 0.8) == 4 * queries.ROUND
    assert queries.labels_for([0.9, 0.8], 0.8) == queries.ROUND
    assert queries.labels_for([0.9, 0.7], 0.8) == 3 * queries.ROUND


@pytest.mark.slow
def test_active_queries_reach_the_accuracy_of_random_ones_with_fewer_labels() -> None:
    found = [line for seed in (20, 21) for line in queries.measured(seed, scale=1.5, labels=200)]
    for name in ("disagreement", "information gain"):
        shares = [line["share"] for line in found if line["acquisition"] == name]
        assert sum(shares) / len(shares) <= queries.SHARE
    assert all(line["share"] <= 1 for line in found if line["acquisition"] == "random")
