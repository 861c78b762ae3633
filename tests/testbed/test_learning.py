"""E1: the production trainer, sampling from the frozen testbed, ends at π*, and its critic at V*.

Every evaluation checks J* − J(π) = β·KL(π‖π*) to 1e-10 (``Testbed.distance``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from rlhf.algorithms.advantages import GAE, GroupRelative, LeaveOneOut
from rlhf.algorithms.kl import AdaptiveKLInReward
from rlhf.algorithms.policy_losses import Clipped
from rlhf.trainers.policy_gradient import PolicyGradientTrainer
from rlhf.trainers.schedules import Schedule
from tests.testbed import table
from tests.testbed.tree import Testbed


def critic_error(bed: Testbed, trained: PolicyGradientTrainer) -> float:
    """max|V − V*| over the states that π* visits with probability > 1e-3."""
    values, reached = bed.soft_values()
    visited = reached > 1e-3
    assert visited.sum() == 64
    return (table.values(trained) - values)[visited].abs().max().item()


def test_ppo_nears_the_optimum_in_300_updates(testbed: Testbed) -> None:
    trained = table.trainer(testbed, table.ppo(), updates=300)
    assert table.distance_after(testbed, trained) <= 2e-3
    assert critic_error(testbed, trained) <= 0.05


@pytest.mark.parametrize("advantage", [LeaveOneOut(), GroupRelative()], ids=["rloo", "grpo"])
def test_group_baselines_end_at_the_optimum(testbed: Testbed, advantage: Any) -> None:
    trained = table.trainer(testbed, table.grouped(advantage), updates=600)
    assert table.distance_after(testbed, trained) <= 1e-3


def test_temperature_belongs_to_the_policy(testbed: Testbed) -> None:
    """E19: sampled and scored at 0.7, it is softmax(θ/0.7) that ends at π*, and not softmax(θ)."""
    start = 0.7 * testbed.ref_logits
    trained = table.trainer(testbed, table.grouped(LeaveOneOut()), updates=300, temperature=0.7, start=start)
    while trained.done < trained.total:
        trained.step()
    assert testbed.distance(table.logits(trained) / 0.7) <= 1e-3
    assert testbed.distance(table.logits(trained)) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_ends_at_the_optimum_with_the_right_critic(testbed: Testbed, seed: int) -> None:
    trained = table.trainer(testbed, table.ppo(), updates=600, seed=seed)
    assert table.distance_after(testbed, trained) <= 1e-3
    assert critic_error(testbed, trained) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"advantage": GAE(lam=0.0)},
        {"advantage": GAE(lam=1.0)},
        {"advantage": GAE(whiten=False)},
        {"epochs": 1},
        {"policy_loss": Clipped(clip_low=1.0, clip_high=1e9)},
    ],
    ids=["lambda 0", "lambda 1", "no whitening", "one epoch", "no clip"],
)
def test_correct_variants_of_ppo_end_at_the_optimum(testbed: Testbed, changes: dict[str, Any]) -> None:
    trained = table.trainer(testbed, table.ppo(**changes), updates=600)
    assert table.distance_after(testbed, trained) <= 1e-3


@pytest.mark.slow
def test_dr_grpo_ends_at_the_optimum(testbed: Testbed) -> None:
    algorithm = table.grouped(GroupRelative(divide_by_std=False))
    assert table.distance_after(testbed, table.trainer(testbed, algorithm, updates=600)) <= 1e-3


def instance(seed: int, beta: float) -> Testbed:
    """Other draws of numerics 3.1: the first of each generator belongs to β = 1, the second to 0.3."""
    numbers = np.random.default_rng(seed)
    cut = ~Testbed().ended
    for drawn in (1.0, 0.3):
        ref_logits = torch.from_numpy(0.7 * numbers.normal(0.0, 1.0, (85, 5)))
        r = torch.from_numpy(numbers.normal(0.0, 1.0, 341))
        r[cut] = -1.0
        if drawn == beta:
            break
    return Testbed(beta, ref_logits, r)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "beta", "updates", "bound", "away"),
    [
        (11, 1.0, 600, 5e-4, 0.34),
        (12, 1.0, 600, 5e-4, 0.52),
        (13, 1.0, 600, 5e-4, 1.17),
        (11, 0.3, 2000, 1e-2, 3.47),
        (12, 0.3, 2000, 1e-2, 1.80),
        (13, 0.3, 2000, 1e-2, 3.52),
    ],
)
def test_ppo_ends_at_the_optimum_of_other_instances(
    seed: int, beta: float, updates: int, bound: float, away: float
) -> None:
    bed = instance(seed, beta)
    assert (bed.log_star.exp() @ (bed.log_star - bed.log_ref)).item() == pytest.approx(away, abs=5e-3)
    trained = table.trainer(bed, table.ppo(beta), updates=updates)
    assert table.distance_after(bed, trained) <= bound


@dataclass(kw_only=True, slots=True)
class Floored(Schedule):
    """Linear, but never below a twentieth."""

    def after_warmup(self, progress: float) -> float:
        return max(1 - progress, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("horizon", [2560, 10_000])
def test_the_adaptive_coefficient_settles_where_the_kl_is_its_target(testbed: Testbed, horizon: int) -> None:
    """E18: KL(π*_β‖π_ref) is 1 at β = 0.6557 (numerics 2.2)."""
    algorithm = table.ppo(kl=AdaptiveKLInReward(coef=0.2, target=1.0, horizon=horizon))
    trained = table.trainer(testbed, algorithm, updates=3000, schedule=Floored())
    coefs, divergences = [], []
    while trained.done < trained.total:
        trained.step()
        if trained.done > 2500:
            coefs.append(trained.state.kl_coef)
            divergences.append(testbed.kl_to_reference(table.logits(trained)))
    assert abs(np.mean(coefs) / 0.6557 - 1) < 0.03
    assert abs(np.mean(divergences) - 1) < 0.02
