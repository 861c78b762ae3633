"""Bugs of other frameworks in the maths of a policy update."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import math
from inspect import isclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import rlhf
from rlhf.algorithms import kl as kl_components
from rlhf.algorithms.advantages import (
    GAE,
    AdvantageEstimator,
    GroupRelative,
    LeaveOneOut,
    WhitenedGroupDeviation,
    WhitenedReturns,
)
from rlhf.algorithms.aggregation import Aggregation, ConstantLength, SequenceMean, TokenMean
from rlhf.algorithms.corrections import Correction, Level, Masked, Truncated
from rlhf.algorithms.kl import KL, KLInLoss, KLInReward, NoKL
from rlhf.algorithms.policy_gradient import PolicyGradient
from rlhf.algorithms.policy_losses import Clipped, PolicyLoss, Reinforce
from rlhf.algorithms.preferences import BradleyTerry
from rlhf.algorithms.value_losses import ClippedValueLoss, SquaredError, ValueLoss
from rlhf.batch import Rollout
from rlhf.metrics import Metrics
from rlhf.ops.kl import k1, k2, k3
from rlhf.ops.policy_losses import approx_kl
from rlhf.ops.variance import explained_variance

MASK = torch.arange(4) < torch.tensor([[4], [2], [3], [1]])
GROUP = torch.tensor([0, 1, 0, 1])
POISON = [float("nan"), 1e9, -1e9]


def one_rank(part: Tensor) -> Tensor:
    return part


def draws(count: int, seed: int = 0) -> tuple[Tensor, ...]:
    return torch.randn(count, 4, 4, generator=torch.Generator().manual_seed(seed)).unbind()


def row(*x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


# 1. Loss normalisation


@pytest.mark.parametrize("mode", [TokenMean(), SequenceMean(), ConstantLength(length=4)])
def test_dropped_responses_leave_the_denominator_too(mode: Aggregation) -> None:
    kept = MASK.clone()
    kept[0] = False  # a truncated response kept out of the loss
    torch.testing.assert_close(mode(kept, one_rank)[1:], mode(MASK[1:], one_rank), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (TokenMean(), [[1 / 4, 0, 0], [1 / 4, 1 / 4, 1 / 4]]),
        (SequenceMean(), [[1 / 2, 0, 0], [1 / 6, 1 / 6, 1 / 6]]),
        (ConstantLength(length=5), [[1 / 10, 0, 0], [1 / 10, 1 / 10, 1 / 10]]),
    ],
)
def test_each_aggregation_weighs_tokens_as_documented(mode: Aggregation, expected: list[list[float]]) -> None:
    mask = torch.tensor([[True, False, False], [True, True, True]])
    torch.testing.assert_close(mode(mask, one_rank), torch.tensor(expected))


# 2. Log-probabilities


@pytest.mark.parametrize("level", list(Level))
@pytest.mark.parametrize(("correction", "bound"), [(Truncated(cap=2.0), 2.0), (Masked(high=3.0), 3.0)])
@pytest.mark.parametrize("gap", [0.1, 1.0, 5.0, 40.0, 500.0])
def test_importance_weights_are_bounded_in_every_mode(
    correction: Correction, bound: float, level: Level, gap: float
) -> None:
    """However far sampler and scorer lie apart, one way or the other, also where the ratio overflows."""
    correction = dataclasses.replace(correction, level=level)
    (noise,) = draws(1)
    for sampler in (noise, noise + gap, noise - gap, noise * gap):
        weights = correction(noise, sampler, MASK)
        assert weights.isfinite().all()
        assert (weights >= 0).all()
        assert (weights <= bound).all()
        assert (weights[~MASK] == 0).all()


# 3. Masks

ADVANTAGES: list[AdvantageEstimator] = [GAE(), GAE(whiten=False), LeaveOneOut(), GroupRelative()]
LOSSES: list[PolicyLoss] = [Clipped(), Reinforce()]
KLS: list[KL] = [NoKL(), KLInReward(), KLInLoss()]
VALUE_LOSSES: list[ValueLoss] = [ClippedValueLoss(), SquaredError()]


def everything(
    fill: float, advantage: AdvantageEstimator, loss: PolicyLoss, kl: KL, value_loss: ValueLoss
) -> list[Tensor]:
    """All that one update computes, and its gradients, with ``fill`` in every masked slot."""
    logprobs, old, ref, values, penalty = (torch.where(MASK, x, fill) for x in draws(5))
    logprobs.requires_grad_()
    values.requires_grad_()
    algorithm = PolicyGradient(
        advantage=advantage,
        policy_loss=loss,
        kl=kl,
        aggregation=SequenceMean(),
        value_loss=value_loss if advantage.needs_critic else None,
    )
    rewards = algorithm.shape(row(1, 2, 3, 4).float(), torch.ones(4).bool(), old, ref, MASK, 0.3)
    dirty = torch.where(MASK, rewards, fill)
    estimate = algorithm.estimate(dirty, values.detach(), MASK, GROUP, one_rank)
    token = loss(logprobs, old, torch.where(MASK, estimate.advantages, fill), MASK)
    token = token + kl.loss(logprobs, ref, MASK, 0.3) + 0 * torch.where(MASK, logprobs, 0.0)
    critic = value_loss(values, old, penalty, MASK)
    (algorithm.aggregation(MASK, one_rank) * (token + critic)).sum().backward()
    explained = explained_variance(values.detach(), penalty, MASK, one_rank)
    return [rewards, estimate.advantages, token, critic, logprobs.grad, values.grad, explained]


@pytest.mark.parametrize("fill", POISON)
@pytest.mark.parametrize("parts", list(itertools.product(ADVANTAGES, LOSSES, KLS, VALUE_LOSSES)), ids=repr)
def test_poisoned_masked_slots_change_nothing(fill: float, parts: tuple) -> None:
    for clean, dirty in zip(everything(0.0, *parts), everything(fill, *parts), strict=True):
        assert torch.equal(clean, dirty)
        assert clean.isfinite().all()


@pytest.mark.parametrize("fill", [1.0, *POISON])
def test_metrics_ignore_padding(fill: float) -> None:
    def report(padding: float) -> dict[str, float]:
        logprobs, old, advantages = (torch.where(MASK, x, padding) for x in draws(3))
        metrics = Metrics()
        metrics.mean("kl", approx_kl(logprobs, old), MASK)
        metrics.mean("clipped", Clipped().clipped(logprobs, old, advantages).double(), MASK)
        return {name: total / count for name, (total, count) in metrics.pairs.items()}

    assert report(fill) == report(0.0)


# 4. KL


def test_kl_estimators_match_the_exact_kl() -> None:
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 7, generator=generator, dtype=torch.float64).log_softmax(-1)
    exact = (policy.exp() * (policy - reference)).sum()
    assert abs((policy.exp() * k1(policy, reference)).sum() - exact) < 1e-10
    assert abs((policy.exp() * k3(policy, reference)).sum() - exact) < 1e-10
    assert abs((policy.exp() * k2(policy, reference)).sum() - exact) > 0.01


def enumerated(theta: Tensor) -> Tensor:
    """(9, 2) log-probs of every response of two steps with three tokens; (4, 3) logits, by state."""
    table = theta.log_softmax(1)
    return torch.stack([torch.stack([table[0, a], table[1 + a, b]]) for a in range(3) for b in range(3)])


def test_kl_gradient_matches_enumeration() -> None:
    """k1 in the reward has the gradient of the KL; k1, k2 and k3 in a token loss do not, and say so."""
    generator = torch.Generator().manual_seed(0)
    theta, reference = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    theta.requires_grad_()
    logprobs, ref = enumerated(theta), enumerated(reference)
    p, real = logprobs.detach().sum(1).exp()[:, None], torch.ones(9, 2).bool()
    old, zero, group = logprobs.detach(), torch.zeros(9, 2).double(), torch.zeros(9).long()
    exact = (logprobs.sum(1).exp() * (logprobs - ref).sum(1)).sum()
    (expected,) = torch.autograd.grad(exact, theta, retain_graph=True)

    rewards = KLInReward().reward(old, ref, real, 1.0)
    advantages = GAE(lam=1.0, whiten=False)(rewards, zero, real, group, one_rank).advantages
    charged = (p * Reinforce()(logprobs, old, advantages, real)).sum()
    (found,) = torch.autograd.grad(charged, theta, retain_graph=True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)

    for estimator in (k1, k2, k3):
        (wrong,) = torch.autograd.grad((p * estimator(logprobs, ref)).sum(), theta, retain_graph=True)
        assert (wrong - expected).norm() > 0.1 * expected.norm()


def test_clamped_kl_has_zero_gradient() -> None:
    """A term whose value no longer moves has no gradient. None of ours is clamped (numerics D16), so value
    and gradient agree however far policy and reference are apart, and what is charged carries no gradient.
    """
    gaps = torch.tensor([[-16.0, -11.0, -9.0, -3.0, -0.1, 0.1, 3.0, 9.0, 11.0, 16.0]], dtype=torch.float64)
    real, ref = torch.ones_like(gaps).bool(), torch.full_like(gaps, -20.0)
    ours = [kind for kind in vars(kl_components).values() if isclass(kind) and issubclass(kind, KL)]
    ours = [kind for kind in ours if kind not in (KL, NoKL)]
    placements = [kind(coef=0.5) for kind in ours]
    assert len(placements) >= 3
    for kl in placements:
        logprobs = (ref + gaps).requires_grad_()
        charged = kl.reward(logprobs, ref, real, 0.5)
        assert not charged.requires_grad
        assert charged.abs().max() == 0 or torch.allclose(charged, -0.5 * gaps, rtol=1e-12, atol=0.0)
        (kl.loss(logprobs, ref, real, 0.5) + 0 * logprobs).sum().backward()
        with torch.no_grad():
            step = 1e-5
            higher, lower = (kl.loss(logprobs + sign * step, ref, real, 0.5) for sign in (1, -1))
            slope = (higher - lower) / (2 * step)
        torch.testing.assert_close(logprobs.grad, slope, rtol=1e-6, atol=1e-6)


# 5. Advantages


@pytest.mark.parametrize("lam", [0.0, 0.95])
def test_gae_never_reads_a_padded_value(lam: float) -> None:
    rewards, values = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.5, 0.25, 100.0]])
    mask = torch.tensor([[True, True, False]])
    found = GAE(lam=lam, whiten=False)(rewards, values, mask, GROUP[:1], one_rank).advantages
    # δ₁ = 1 − ¼: the value 100 of the pad is no next value
    torch.testing.assert_close(found, torch.tensor([[-0.25 + lam * 0.75, 0.75, 0.0]]))


def gapped() -> Rollout:
    """A response whose second token is text that the policy did not write."""
    mask = torch.tensor([[True, False, True]])
    return Rollout(
        tokens=torch.zeros(1, 4, dtype=torch.int64),
        prompt_mask=torch.ones(1, 1, dtype=torch.bool),
        mask=mask,
        ended=torch.tensor([True]),
        sampler_logprobs=torch.zeros(1, 3),
        index=torch.zeros(1, dtype=torch.int64),
        group=torch.zeros(1, dtype=torch.int64),
    )


def test_gae_skips_tokens_the_policy_did_not_write() -> None:
    """GAE over a gap is not specified (numerics D5): such a rollout is refused before it reaches GAE."""
    with pytest.raises(ValueError, match=r"Rollout.mask has a gap: a response must be a contiguous prefix"):
        gapped()


def test_return_crosses_an_observation_gap() -> None:
    """No return is cut at a gap, because there is none: the rollout is refused (numerics D5)."""
    with pytest.raises(ValueError, match=r"Rollout.mask has a gap"):
        gapped()


@pytest.mark.parametrize("estimator", [LeaveOneOut(), GroupRelative()])
def test_empty_response_leaves_its_group_alone(estimator: AdvantageEstimator) -> None:
    mask = torch.tensor([[True, True], [True, False], [False, False], [True, True]])
    rewards = torch.tensor([[0.0, 1.0], [3.0, 0.0], [0.0, -50.0], [0.0, 8.0]])
    group = torch.zeros(4, dtype=torch.int64)
    found = estimator(rewards, None, mask, group, one_rank).advantages
    kept = torch.tensor([0, 1, 3])
    alone = estimator(rewards[kept], None, mask[kept], group[kept], one_rank).advantages
    assert torch.equal(found[kept], alone)
    assert (found[2] == 0).all()


@pytest.mark.parametrize("estimator", [LeaveOneOut(), GroupRelative(), GroupRelative(divide_by_std=False)])
def test_group_estimators_refuse_a_single_response(estimator: AdvantageEstimator) -> None:
    with pytest.raises(ValueError, match="group 3 has 1 response, needs at least 2"):
        estimator(torch.zeros(3, 2), None, torch.ones(3, 2).bool(), torch.tensor([5, 3, 5]), one_rank)


@pytest.mark.parametrize("estimator", [LeaveOneOut(), GroupRelative(divide_by_std=False)])
def test_row_statistics_broadcast_along_tokens(estimator: AdvantageEstimator) -> None:
    rewards = torch.diag(torch.tensor([1.0, 2.0, 3.0, 6.0]))  # as many rows as tokens, so that a slip runs
    found = estimator(rewards, None, torch.ones(4, 4).bool(), torch.zeros(4).long(), one_rank).advantages
    scale = 4 / 3 if isinstance(estimator, LeaveOneOut) else 1.0
    expected = scale * torch.tensor([-2.0, -1.0, 0.0, 3.0])[:, None].expand(4, 4)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("estimator", [LeaveOneOut(), GroupRelative(), GroupRelative(eps=1e-8)])
@pytest.mark.parametrize("score", [0.7, 0.1, -1e4 / 3, 1e-3])
def test_identical_siblings_give_no_spike(estimator: AdvantageEstimator, score: float) -> None:
    for size in (2, 3, 7, 16, 33, 64):
        rewards, real = torch.zeros(size, 3), torch.ones(size, 3).bool()
        rewards[:, 2] = score
        group = torch.zeros(size, dtype=torch.int64)
        assert (estimator(rewards, None, real, group, one_rank).advantages == 0).all()


def test_whitened_advantages_have_mean_zero() -> None:
    rewards = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    found = GAE()(rewards, torch.zeros(4, 1), torch.ones(4, 1).bool(), GROUP, one_rank).advantages
    expected = torch.tensor([[-1.5], [-0.5], [0.5], [1.5]]) / math.sqrt(1.25)
    torch.testing.assert_close(found, expected)


def test_reinforce_plus_plus_matches_a_hand_worked_batch() -> None:
    """Two responses to one prompt, β = ½, scores 3 and 0, k1 of (2, −2, 0) and (4).

    Rewards are (−1, 1, 3) and (−2), so the returns to go are (3, 4, 3) and (−2): over the four tokens their
    mean is 2 and their variance (1 + 4 + 1 + 16)/4 = 5.5. With the group baseline the whole returns 3 and −2
    lose their mean ½: over the tokens (2.5, 2.5, 2.5, −2.5) have mean 1.25 and variance 4.6875 = 3·1.25².
    """
    mask, group = torch.tensor([[True, True, True], [True, False, False]]), torch.zeros(2).long()
    old, ref = row(0.0).expand(2, 3), torch.tensor([[-2.0, 2.0, 0.0], [-4.0, 9.0, 9.0]]).double()
    chosen = PolicyGradient(
        advantage=WhitenedReturns(), policy_loss=Clipped(), kl=KLInReward(), aggregation=TokenMean()
    )
    rewards = chosen.shape(row(3.0, 0.0), torch.ones(2).bool(), old, ref, mask, 0.5)
    assert rewards.tolist() == [[-1.0, 1.0, 3.0], [-2.0, 0.0, 0.0]]
    found = chosen.estimate(rewards, None, mask, group, one_rank).advantages
    expected = torch.tensor([[1.0, 2.0, 1.0], [-4.0, 0.0, 0.0]]).double() / math.sqrt(5.5)
    torch.testing.assert_close(found, expected)
    found = WhitenedGroupDeviation()(rewards, None, mask, group, one_rank).advantages
    expected = torch.tensor([[1.0, 1.0, 1.0], [-3.0, 0.0, 0.0]]).double() / math.sqrt(3)
    torch.testing.assert_close(found, expected)


# 8. Reward models


def test_margin_changes_the_loss() -> None:
    with_margin = BradleyTerry()(row(1.0), row(0.0), row(1.0))
    assert with_margin.item() == pytest.approx(math.log(2))
    assert BradleyTerry()(row(1.0), row(0.0), row(0.0)).item() == pytest.approx(math.log1p(math.exp(-1)))


@pytest.mark.parametrize("gap", [1e4, -1e4])
def test_pairwise_loss_is_finite_at_large_gaps(gap: float) -> None:
    chosen = torch.tensor([gap], requires_grad=True)  # float32
    loss = BradleyTerry()(chosen, torch.zeros(1), torch.zeros(1))
    loss.sum().backward()
    assert loss.item() == max(-gap, 0.0)
    assert chosen.grad.item() == (0.0 if gap > 0 else -1.0)


def test_pairwise_loss_matches_a_hand_worked_pair() -> None:
    # σ(2) = 0.880797…, −log σ(2) = 0.126928…; the reversed pair 2 more
    loss = BradleyTerry()(row(1.5, -0.5), row(-0.5, 1.5), row(0.0, 0.0))
    assert loss.tolist() == pytest.approx([0.12692801104297, 2.12692801104297], abs=1e-13)


# 11. Tests that cannot fail


def imported(path: Path) -> set[str]:
    """Names of all modules that a file imports, at any depth of nesting."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize(
    ("package", "neighbours"), [("ops", {"ops"}), ("algorithms", {"ops", "algorithms", "batch"})]
)
def test_maths_imports_torch_only(package: str, neighbours: set[str]) -> None:
    files = sorted((Path(rlhf.__file__).parent / package).glob("*.py"))
    assert len(files) > 5
    for file in files:
        for name in imported(file):
            top, *rest = name.split(".")
            foreign = {"transformers", "deepspeed", "datasets", "hydra", "omegaconf", "numpy", "ray"}
            assert top not in foreign, f"{file.name} imports {name}"
            assert not name.startswith("torch.distributed"), f"{file.name} imports {name}"
            if top == "rlhf":
                assert rest, f"{file.name} imports the whole package"
                assert rest[0] in neighbours, f"{file.name} imports {name}"
