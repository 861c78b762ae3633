"""E16: PPO-ptx on the testbed ends where E r − β·KL + γ·E_q log π is largest, q being the texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlhf.algorithms.advantages import LeaveOneOut
from rlhf.data.encoding import Encoded
from rlhf.data.fitting import Report
from rlhf.data.loaded import SupervisedSet
from rlhf.distributed.runtime import Runtime
from rlhf.trainers.micro_batches import Cut
from rlhf.trainers.policy_gradient import PolicyGradientTrainer
from rlhf.trainers.pretraining import Pretraining
from tests.testbed import table
from tests.testbed.tree import Testbed

TEXTS = 2000


def frequencies() -> Tensor:
    """(341,) how often each outcome stands among the texts: default_rng(7).dirichlet(ones(341)), rounded."""
    q = np.random.default_rng(7).dirichlet(np.ones(341))
    return torch.from_numpy(np.maximum(np.rint(q * TEXTS), 1)).long()


def maximiser(bed: Testbed, q: Tensor, gamma: float) -> Tensor:
    """(341,) log p with β·log(p/π_ref) − γ·q/p = r − c for every outcome, c so that Σp = 1; by bisection."""

    def outcome(level: Tensor) -> Tensor:
        """log p at r − c = level, where the left side rises with log p."""
        low, high = torch.full((341,), -60.0).double(), torch.full((341,), 60.0).double()
        for _ in range(80):
            middle = (low + high) / 2
            above = bed.BETA * (middle - bed.log_ref) - gamma * q * (-middle).exp() > level
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2

    low, high = -50.0, 50.0
    for _ in range(80):
        c = (low + high) / 2
        low, high = (c, high) if outcome(bed.r - c).exp().sum() > 1 else (low, c)
    return outcome(bed.r - (low + high) / 2)


def with_texts(bed: Testbed, gamma: float) -> PolicyGradientTrainer:
    """RLOO's recipe; every step sees all texts, so that their gradient has no noise."""
    counts = frequencies()
    encoded = [
        Encoded(tokens=[table.PROMPT, *outcome], targets=[False, *[True] * len(outcome)])
        for outcome, count in zip(bed.outcomes, counts.tolist(), strict=True)
        for _ in range(count)
    ]
    rows = SupervisedSet(encoded=encoded, pad_id=bed.PAD, report=Report(source="texts"))
    tokens = sum(len(row.tokens) - 1 for row in encoded) / len(encoded)
    # The texts' loss is a mean over tokens, the policy's a sum over the tokens of a response.
    trained = table.trainer(bed, table.grouped(LeaveOneOut(), ptx_coef=gamma * tokens), updates=400)
    trained.updater.pretraining = Pretraining(
        rows=rows,
        batch_size=len(encoded),
        cut=Cut(rows=len(encoded)),
        seed=0,
        runtime=Runtime(0, 1, 0, torch.device("cpu")),
    )
    return trained


def ended(trained: PolicyGradientTrainer) -> Tensor:
    """(85, 5) the policy's logits at the end of the run."""
    while trained.done < trained.total:
        trained.step()
    return table.logits(trained)


def between(bed: Testbed, logits: Tensor, log_p: Tensor) -> float:
    joint = bed.log_joint(logits)
    return (joint.exp() @ (joint - log_p)).item()


@pytest.mark.parametrize(
    ("gamma", "away", "score"), [(0.0, 0.0, 0.9645), (0.1, 0.0839, 0.7901), (0.5, 0.5217, 0.3881)]
)
def test_the_maximiser_is_the_one_of_the_specification(
    testbed: Testbed, gamma: float, away: float, score: float
) -> None:
    q = torch.from_numpy(np.random.default_rng(7).dirichlet(np.ones(341)))
    log_p = maximiser(testbed, q, gamma)
    assert (log_p.exp() @ (log_p - testbed.log_star)).item() == pytest.approx(away, abs=1e-4)
    assert (log_p.exp() @ testbed.r).item() == pytest.approx(score, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [0.1, 0.5])
def test_texts_of_pretraining_pull_the_policy_to_the_maximiser(testbed: Testbed, gamma: float) -> None:
    counts = frequencies()
    predicted = maximiser(testbed, counts / counts.sum(), gamma)
    logits = ended(with_texts(testbed, gamma))
    assert testbed.distance(logits) > 0.05
    assert between(testbed, logits, predicted) <= 2e-3


@pytest.mark.slow
def test_an_optimizer_of_their_own_would_cancel_the_coefficient(testbed: Testbed) -> None:
    """Adam gives the texts' step the same size whatever their weight, so the policy ends elsewhere."""
    counts = frequencies()
    trained = with_texts(testbed, 0.1)
    backward = trained.updater.pretraining.backward
    parameters = list(trained.models.actor.module.parameters())
    own = torch.optim.Adam(parameters, lr=0.05)

    def and_step(*args: Any) -> None:
        policys = [parameter.grad for parameter in parameters]
        own.zero_grad()
        backward(*args)
        own.param_groups[0]["lr"] = 0.05 * (1 - trained.done / trained.total)
        own.step()
        for parameter, gradient in zip(parameters, policys, strict=True):
            parameter.grad = gradient

    trained.updater.pretraining.backward = and_step
    logits = ended(trained)
    assert between(testbed, logits, maximiser(testbed, counts / counts.sum(), 0.1)) > 0.05
