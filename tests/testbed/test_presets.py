"""Where every preset ends on the testbed: at π*, or at the other fixed point that is predicted for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from rlhf import config
from rlhf.algorithms.policy_gradient import PolicyGradient
from rlhf.cli.composition import compose
from rlhf.ops.kl import k2, k3
from tests.testbed import table
from tests.testbed.tree import Testbed

config.register({"rl": config.RL})


def preset(name: str, *overrides: str) -> PolicyGradient:
    """As the command line composes it, for responses of four tokens of which a cut one costs 1."""
    fitting = ("rollout.sampling.max_new_tokens=4", "algorithm.missing_eos_score=-1.0", "rollout.samples=4")
    raw = compose("rl", [f"algorithm={name}", *fitting, *overrides])
    for key in OmegaConf.missing_keys(raw):
        OmegaConf.update(raw, key, "1")
    return config.build(raw, config.RL).algorithm


# The KL in the reward: π*


@pytest.mark.parametrize(
    ("name", "updates", "lr", "rows"),
    [
        ("reinforce", 400, 0.05, 256),
        ("remax", 400, 0.05, 256),
        pytest.param("ppo", 600, 0.03, 256, marks=pytest.mark.slow),
        pytest.param("ppo_penalty", 600, 0.03, 256, marks=pytest.mark.slow),
        pytest.param("rloo", 600, 0.05, 256, marks=pytest.mark.slow),
        # One mean for all states: its advantages do not vanish at π*, and neither does their noise.
        pytest.param("reinforce_plus_plus", 1000, 0.005, 1024, marks=pytest.mark.slow),
    ],
)
def test_with_the_kl_in_the_reward_a_preset_ends_at_the_optimum(
    testbed: Testbed, name: str, updates: int, lr: float, rows: int
) -> None:
    algorithm = preset(name, "algorithm.kl.coef=0.5")
    trained = table.trainer(testbed, algorithm, updates=updates, lr=lr, rows=rows)
    assert table.distance_after(testbed, trained) <= 1e-3


# The KL in the loss: where exact gradients of the same objective lead


def ascent(
    bed: Testbed,
    advantage: Callable[[Tensor, Tensor], Tensor],
    kl: Callable[[Tensor, Tensor], Tensor],
    mean: str,
) -> Tensor:
    """(85, 5) the end of gradient descent in float64, all responses enumerated.

    Args:
        bed: the testbed.
        advantage: from probabilities (341,) and token counts (341,) to the advantage of each response.
        kl: of log-probs and reference log-probs, added to the loss of a token with coefficient 1.
        mean: "tokens" or "sequences", what the loss is a mean over.
    """
    logits = bed.ref_logits.clone().requires_grad_()
    ref, lengths = bed.logprobs(bed.ref_logits), bed.mask.sum(1).double()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 600)
        logprobs, weight = bed.logprobs(logits), bed.log_joint(logits.detach()).exp()
        share = weight / (weight @ lengths) if mean == "tokens" else weight / lengths
        loss = -advantage(weight, lengths)[:, None] * logprobs + kl(logprobs, ref)
        optimizer.zero_grad()
        (share[:, None] * torch.where(bed.mask, loss, 0.0)).sum().backward()
        optimizer.step()
    return logits.detach()


def between(bed: Testbed, logits: Tensor, other: Tensor) -> float:
    """KL of the one policy to the other, nats."""
    joint = bed.log_joint(logits)
    return (joint.exp() @ (joint - bed.log_joint(other))).item()


@pytest.mark.slow
def test_grpo_ends_where_k3_and_the_deviation_lead(testbed: Testbed) -> None:
    """(r − mean)/std of the whole distribution, which groups of 512 come near to; mean over responses."""

    def standardised(weight: Tensor, lengths: Tensor) -> Tensor:
        centred = testbed.r - weight @ testbed.r
        return centred / ((weight @ centred**2).sqrt() + 1e-4)

    predicted = ascent(testbed, standardised, k3, "sequences")
    algorithm = preset("grpo", "algorithm.kl.coef=1.0")
    trained = table.trainer(testbed, algorithm, updates=300, lr=0.05, rows=1024, group=512)
    assert table.distance_after(testbed, trained) > 0.3
    assert between(testbed, table.logits(trained), predicted) <= 5e-3


@pytest.mark.slow
def test_reinforce_plus_plus_with_a_baseline_ends_where_k2_leads(testbed: Testbed) -> None:
    """Deviations from the mean, whitened over tokens: long responses count as often as they have tokens."""

    def whitened(weight: Tensor, lengths: Tensor) -> Tensor:
        tokens = weight * lengths / (weight @ lengths)
        deviation = testbed.r - weight @ testbed.r
        centred = deviation - tokens @ deviation
        return centred / (tokens @ centred**2).sqrt()

    predicted = ascent(testbed, whitened, k2, "tokens")
    algorithm = preset("reinforce_plus_plus_baseline", "algorithm.kl.coef=1.0", "algorithm.minibatches=1")
    trained = table.trainer(testbed, algorithm, updates=300, lr=0.05, rows=1024, group=512)
    assert table.distance_after(testbed, trained) > 0.3
    assert between(testbed, table.logits(trained), predicted) <= 5e-3


# No KL: one response for everything


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dr_grpo", "dapo", "gspo", "cispo"])
def test_without_a_kl_a_preset_ends_on_one_response_that_no_single_token_improves(
    testbed: Testbed, name: str
) -> None:
    """Every policy that always says the same is a fixed point; a stable one wins at each of its states."""
    algorithm = preset(name)
    trained = table.trainer(testbed, algorithm, updates=600)
    while trained.done < trained.total:
        trained.step()
    logits = table.logits(trained)
    joint = testbed.log_joint(logits)
    said = int(joint.argmax())
    assert joint[said].exp() > 0.99
    penalty = algorithm.overlong_penalty
    scores = testbed.r + (0.0 if penalty is None else penalty(testbed.mask.sum(1)).double())
    assert scores[said] > testbed.log_star.exp() @ scores  # more than π* earns, which pays for its KL
    for t, token in enumerate(testbed.outcomes[said]):
        state = testbed.states[said, t]
        through = (testbed.states[:, t] == state) & testbed.mask[:, t]
        worth = {
            action: ((joint[chosen].exp() / joint[chosen].exp().sum()) @ scores[chosen]).item()
            for action in range(5)
            if (chosen := through & (testbed.responses[:, t] == action)).any()
        }
        assert max(worth, key=lambda action: worth[action]) == token
