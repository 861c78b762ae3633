import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from rlhf.algorithms.advantages import NoBaseline
from rlhf.algorithms.aggregation import TokenMean
from rlhf.algorithms.corrections import Truncated
from rlhf.algorithms.kl import NoKL
from rlhf.algorithms.policy_gradient import PolicyGradient
from rlhf.algorithms.policy_losses import Clipped
from rlhf.batch import Experience, Rollout
from rlhf.metrics import Metrics
from rlhf.trainers import rollout_metrics
from rlhf.trainers.rollout_metrics import Measured

MASK = torch.tensor([[True, True, True], [True, False, False]])
OLD = torch.tensor([[-1.0, -2.0, -3.0], [-1.5, 0.0, 0.0]])
REF = torch.tensor([[-1.5, -1.0, -3.5], [-1.0, 0.0, 0.0]])
POISON = torch.where(MASK, 0.0, 9e9)
CLIPPED = PolicyGradient(advantage=NoBaseline(), policy_loss=Clipped(), kl=NoKL(), aggregation=TokenMean())
K1 = [[0.5, -1.0, 0.5], [-0.5]]


def rollout() -> Rollout:
    return Rollout(
        tokens=torch.arange(10).view(2, 5),
        prompt_mask=torch.ones(2, 2, dtype=torch.bool),
        mask=MASK,
        ended=torch.tensor([False, True]),
        sampler_logprobs=OLD + torch.where(MASK, torch.tensor([[0.1, -0.2, 0.0], [0.3, 0.0, 0.0]]), 0.0),
        index=torch.arange(2),
        group=torch.arange(2),
    )


def measured(padding: float = 0.0) -> Measured:
    poison = padding * POISON
    rewards = torch.tensor([[0.0, 1.0, 2.0], [-4.0, 0.0, 0.0]])
    return Measured(
        rollout=rollout(),
        scores=torch.tensor([3.0, -1.0]),
        parts={"brevity": torch.tensor([2.0, 5.0])},
        rewards=rewards + poison,
        old_logprobs=OLD + poison,
        ref_logprobs=REF - poison,
        entropies=torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.0, 0.0]]) + poison,
        exact_kl=torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.0, 0.0]]) + poison,
    )


def numbers(metrics: Metrics) -> dict[str, float]:
    return metrics.reduce(lambda tensor: tensor, lambda tensor: tensor)


@pytest.mark.parametrize("padding", [0.0, 1.0])
def test_a_rollout_by_hand(padding: float) -> None:
    metrics = Metrics()
    means = rollout_metrics.rollout(measured(padding), metrics)
    k3 = [[math.exp(-k) - 1 + k for k in row] for row in K1]
    expected = {
        "reward/score": 1.0,
        "reward/score_std": 2.0,
        "reward/brevity": 3.5,
        "reward/total": (3.0 - 4.0) / 2,
        "actor/kl_reference": (0.0 - 0.5) / 2,  # summed over a response, averaged over responses
        "actor/kl_reference_per_token": -0.5 / 4,
        "actor/kl_reference_k3": (sum(k3[0]) + sum(k3[1])) / 2,
        "actor/kl_reference_exact": (0.6 + 0.4) / 2,
        "actor/entropy": 10.0 / 4,
        "rollout/length": 2.0,
        "rollout/ended_fraction": 0.5,
        "rollout/truncated_fraction": 0.5,
        "ledger/logprob_gap_mean": 0.6 / 4,
        "ledger/logprob_gap_max": 0.3,
    }
    assert numbers(metrics) == pytest.approx(expected, rel=1e-6)
    assert means == pytest.approx((-0.25, -0.5))


def test_exact_kl_is_left_out_where_it_was_not_measured() -> None:
    without = measured()
    without.exact_kl = None
    metrics = Metrics()
    rollout_metrics.rollout(without, metrics)
    assert "actor/kl_reference_exact" not in numbers(metrics)


def experience(**changes: Any) -> Experience:
    fields = {"advantages": torch.where(MASK, 1.0, 0.0), "old_logprobs": OLD, "ref_logprobs": REF} | changes
    return Experience(rollout=rollout(), **fields)


def test_how_far_the_policy_moved_by_hand() -> None:
    moved = OLD + torch.tensor([[math.log(1.5), math.log(0.5), 0.0], [math.log(1.1), 0.0, 0.0]]) + POISON
    metrics = Metrics()
    rollout_metrics.policy_moves(CLIPPED, moved, experience(), metrics)
    kl = sum(ratio - 1 - math.log(ratio) for ratio in (1.5, 0.5, 1.0, 1.1)) / 4
    assert numbers(metrics) == pytest.approx({"actor/kl_old": kl, "actor/clip_fraction": 0.25}, rel=1e-5)


def test_the_weights_of_a_correction_are_averaged_over_real_tokens() -> None:
    """Sampler's log-probs are 0.1, −0.2, 0 and 0.3 above the old ones."""
    metrics, corrected = Metrics(), replace(CLIPPED, correction=Truncated(cap=1.1))
    rollout_metrics.policy_moves(corrected, OLD + POISON, experience(), metrics)
    weights = (math.exp(-0.1) + 1.1 + 1 + math.exp(-0.3)) / 4
    assert numbers(metrics)["actor/correction_weight"] == pytest.approx(weights, rel=1e-5)


def test_without_a_reference_nothing_is_said_of_the_kl() -> None:
    without = measured()
    without.ref_logprobs = without.exact_kl = None
    metrics = Metrics()
    assert rollout_metrics.rollout(without, metrics) == pytest.approx((0.0, -0.5))
    assert not any("kl" in name for name in numbers(metrics))
    assert rollout_metrics.shown(without).keys() == {"score"}


def test_explained_variance_by_hand() -> None:
    # Returns 0, 2, 4, 6 have variance 5; values 0, 2, 4, 4 leave 0, 0, 0, 2 with variance 3/4.
    returns = torch.tensor([[0.0, 2.0, 4.0], [6.0, 0.0, 0.0]]) + POISON
    values = torch.tensor([[0.0, 2.0, 4.0], [4.0, 0.0, 0.0]])
    metrics = Metrics()
    rollout_metrics.critic(experience(returns=returns, old_values=values), metrics)
    assert numbers(metrics) == pytest.approx({"critic/explained_variance": 1 - 0.75 / 5})


def test_without_a_critic_nothing_is_said_of_it() -> None:
    metrics = Metrics()
    rollout_metrics.critic(experience(), metrics)
    assert metrics.pairs == {}
