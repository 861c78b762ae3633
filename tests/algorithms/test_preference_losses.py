"""Losses of offline preference optimisation: formulae, gradients, and where training with them ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from rlhf.algorithms.preference_losses import (
    DPO,
    IPO,
    KTO,
    ORPO,
    ConservativeDPO,
    Hinge,
    PairedLoss,
    PreferredFT,
    Responses,
    SimPO,
    Unlikelihood,
)

LENGTHS = [[3, 1, 4, 2], [2, 4, 1, 3]]
MASKS = [torch.arange(4) < torch.tensor(lengths)[:, None] for lengths in LENGTHS]
PAIRED: list[PairedLoss] = [
    DPO(beta=0.3),
    ConservativeDPO(beta=0.3, label_smoothing=0.2),
    IPO(tau=0.7),
    Hinge(beta=0.3, margin=0.4),
    ORPO(coef=0.6),
    SimPO(beta=1.7, margin=0.3),
    Unlikelihood(coef=0.4),
    PreferredFT(),
]


def row(*x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def summed(logprobs: Tensor, reference: Tensor | None = None) -> Responses:
    """Responses of one token with these log-probs, by default of a reference that finds them all certain."""
    found = torch.zeros_like(logprobs.detach()) if reference is None else reference
    return Responses(
        token_logprobs=logprobs[:, None], mask=torch.ones(len(logprobs), 1).bool(), reference=found
    )


def sides() -> tuple[list[Tensor], list[Tensor]]:
    """Log-probs of the tokens of four pairs of unequal lengths, and a reference's of the responses."""
    generator = torch.Generator().manual_seed(3)
    tokens = [-3 * torch.rand(4, 4, generator=generator, dtype=torch.float64) - 0.01 for _ in range(2)]
    return tokens, [-6 * torch.rand(4, generator=generator, dtype=torch.float64) for _ in range(2)]


def responses(tokens: list[Tensor], reference: list[Tensor]) -> list[Responses]:
    return [
        Responses(token_logprobs=torch.where(mask, token, 0.0), mask=mask, reference=ref)
        for token, mask, ref in zip(tokens, MASKS, reference, strict=True)
    ]


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_hand(loss: PairedLoss, w: list[float], l: list[float], ref_w: float, ref_l: float) -> float:  # noqa: E741
    """The loss of one pair in plain Python, from the probabilities of its tokens."""
    h = (sum(w) - ref_w) - (sum(l) - ref_l)
    mean_w, mean_l = sum(w) / len(w), sum(l) / len(l)
    if isinstance(loss, DPO):
        return softplus(-0.3 * h)
    if isinstance(loss, ConservativeDPO):
        return 0.8 * softplus(-0.3 * h) + 0.2 * softplus(0.3 * h)
    if isinstance(loss, IPO):
        return (h - 1 / 1.4) ** 2
    if isinstance(loss, Hinge):
        return max(0.0, 0.4 - 0.3 * h)
    if isinstance(loss, ORPO):
        odds = [math.exp(mean) / (1 - math.exp(mean)) for mean in (mean_w, mean_l)]
        return -mean_w - 0.6 * math.log(sigmoid(math.log(odds[0] / odds[1])))
    if isinstance(loss, SimPO):
        return -math.log(sigmoid(1.7 * mean_w - 1.7 * mean_l - 0.3))
    if isinstance(loss, Unlikelihood):
        return -sum(w) - 0.4 * sum(math.log(1 - math.exp(token)) for token in l)
    return -sum(w)


@pytest.mark.parametrize("loss", PAIRED, ids=lambda loss: type(loss).__name__)
def test_loss_is_its_formula_over_the_tokens_of_each_response(loss: PairedLoss) -> None:
    tokens, reference = sides()
    found = loss(*responses(tokens, reference))
    for pair in range(4):
        w, l = (  # noqa: E741
            tokens[side][pair, : LENGTHS[side][pair]].tolist() for side in range(2)
        )
        expected = by_hand(loss, w, l, float(reference[0][pair]), float(reference[1][pair]))
        assert found[pair].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", PAIRED, ids=lambda loss: type(loss).__name__)
def test_gradient_is_that_of_finite_differences(loss: PairedLoss) -> None:
    tokens, reference = sides()
    inputs = tuple(side.requires_grad_() for side in tokens)
    assert gradcheck(lambda *given: loss(*responses(list(given), reference)), inputs)


@pytest.mark.parametrize("loss", PAIRED, ids=lambda loss: type(loss).__name__)
def test_padding_is_not_read(loss: PairedLoss) -> None:
    tokens, reference = sides()
    clean = loss(*responses(tokens, reference))
    dirty = [
        Responses(token_logprobs=torch.where(mask, token, math.nan), mask=mask, reference=ref)
        for token, mask, ref in zip(tokens, MASKS, reference, strict=True)
    ]
    assert torch.equal(loss(*dirty), clean)


@pytest.mark.parametrize("loss", PAIRED, ids=lambda loss: type(loss).__name__)
def test_only_losses_that_say_so_read_the_reference(loss: PairedLoss) -> None:
    tokens, _ = sides()
    without = [
        Responses(token_logprobs=torch.where(mask, token, 0.0), mask=mask)
        for token, mask in zip(tokens, MASKS, strict=True)
    ]
    if loss.needs_reference:
        with pytest.raises(ValueError, match=r"Responses.reference must be given"):
            loss(*without)
    else:
        assert loss(*without).isfinite().all()


WITH_RATIOS = [loss for loss in PAIRED if loss.needs_reference]


@pytest.mark.parametrize("loss", WITH_RATIOS, ids=lambda loss: type(loss).__name__)
def test_what_both_responses_share_changes_nothing(loss: PairedLoss) -> None:
    """An f(x) added to both log-probs of a pair cancels: rewards are known up to a number per prompt."""
    w, l, f = row(-2.0, -3.0), row(-1.0, -4.0), row(5.0, -7.0)  # noqa: E741
    torch.testing.assert_close(loss(summed(w + f), summed(l + f)), loss(summed(w), summed(l)))


# DPO


def test_loss_is_log_two_at_the_reference() -> None:
    w, l = row(-2.0, -30.0), row(-1.0, -3.0)  # noqa: E741
    assert DPO()(summed(w, w), summed(l, l)).tolist() == pytest.approx([math.log(2)] * 2, abs=1e-15)
    assert ConservativeDPO()(summed(w, w), summed(l, l)).tolist() == pytest.approx([math.log(2)] * 2)


@pytest.mark.parametrize("h", [-4.0, 0.0, 2.5])
def test_gradient_weighs_a_pair_by_how_wrong_the_policy_is(h: float) -> None:
    """−β·σ(−β·h) of log π(y_w), and the opposite of log π(y_l); β/2 at the reference."""
    w, l = row(h).requires_grad_(), row(0.0).requires_grad_()  # noqa: E741
    DPO(beta=0.4)(summed(w), summed(l)).sum().backward()
    assert w.grad is not None
    assert l.grad is not None
    assert w.grad.item() == pytest.approx(-0.4 * sigmoid(-0.4 * h), rel=1e-12)
    assert l.grad.item() == -w.grad.item()


def test_swapping_the_responses_turns_the_sign_of_the_gap() -> None:
    w, l = row(-1.0), row(-3.0)  # noqa: E741
    better, worse = DPO(beta=1.0)(summed(w), summed(l)), DPO(beta=1.0)(summed(l), summed(w))
    assert better.item() == pytest.approx(softplus(-2), rel=1e-12)
    assert worse.item() == pytest.approx(softplus(2), rel=1e-12)


def test_loss_is_finite_and_linear_at_large_gaps() -> None:
    found = DPO(beta=1.0)(summed(row(-1e4, 0.0)), summed(row(0.0, -1e4)))
    assert found.tolist() == [1e4, 0.0]


# Optima of two answers, the first preferred with probability p

TARGETS = [
    (DPO(beta=0.5), 0.9, 2.197225 / 0.5),
    (DPO(beta=0.5), 0.6, 0.405465 / 0.5),
    (ConservativeDPO(beta=0.5, label_smoothing=0.1), 0.9, 1.516347 / 0.5),
    (ConservativeDPO(beta=0.5, label_smoothing=0.1), 0.6, 0.322773 / 0.5),
    (IPO(tau=1.0), 0.9, 0.4),
    (IPO(tau=1.0), 0.6, 0.1),
    (IPO(tau=0.2), 0.9, 2.0),
    (IPO(tau=0.5), 1.0, 1.0),
    (ConservativeDPO(beta=0.5, label_smoothing=0.1), 1.0, math.log(9) / 0.5),
    (Hinge(beta=0.5, margin=2.0), 0.9, 4.0),
]


@pytest.mark.parametrize(("loss", "p", "h"), TARGETS, ids=lambda value: str(value)[:40])
def test_population_optimum_is_the_closed_form(loss: PairedLoss, p: float, h: float) -> None:
    """DPO βh = logit p; cDPO σ(βh) = p(1 − ε) + (1 − p)ε; IPO h = (2p − 1)/(2τ); the hinge's is its kink."""
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    reference = row(0.7, 0.3).log()

    def expected_loss() -> Tensor:
        one, other = (summed(logits.log_softmax(0)[[i]], reference[[i]]) for i in range(2))
        return (p * loss(one, other) + (1 - p) * loss(other, one)).sum()

    minimised(expected_loss, logits, kinked=isinstance(loss, Hinge))
    found = (logits.log_softmax(0) - reference).detach()
    assert (found[0] - found[1]).item() == pytest.approx(h, abs=5e-2 if isinstance(loss, Hinge) else 1e-5)


def minimised(objective: Callable[[], Tensor], parameter: Tensor, *, kinked: bool = False) -> None:
    """To machine precision, or where the objective has a kink by ever smaller steps."""
    if not kinked:
        optimizer = torch.optim.LBFGS(
            [parameter],
            max_iter=2000,
            tolerance_grad=1e-13,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = objective()
            value.backward()
            return value

        optimizer.step(closure)
        return
    for step in range(1000):
        (gradient,) = torch.autograd.grad(objective(), parameter)
        parameter.data -= 2.0 / (1 + step / 20) * gradient


def test_deterministic_preferences_send_dpo_to_infinity_and_ipo_to_its_gap() -> None:
    gaps = []
    for loss in (DPO(beta=1.0), IPO(tau=0.25)):
        h = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        path = []
        for step in range(2000):
            (gradient,) = torch.autograd.grad(loss(summed(h), summed(row(0.0))).sum(), h)
            h.data -= 0.1 * gradient
            if step in (499, 1999):
                path.append(h.item())
        gaps.append(path)
    assert gaps[0][1] - gaps[0][0] > 1.0  # log 4 for four times the steps
    assert gaps[1] == pytest.approx([2.0, 2.0])


# Tabular DPO: Bradley–Terry, then the tilt


def comparisons(strengths: np.ndarray, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """(K, K) how often i was preferred to j, each pair compared ``rounds`` times."""
    count = len(strengths)
    wins = np.zeros((count, count))
    for i in range(count):
        for j in range(i):
            wins[i, j] = rng.binomial(rounds, 1 / (1 + np.exp(strengths[j] - strengths[i])))
            wins[j, i] = rounds - wins[i, j]
    return wins


def bradley_terry_mle(wins: np.ndarray) -> np.ndarray:
    """(K,) maximum-likelihood strengths of mean 0, by Newton's method on the definition."""
    strengths, played = np.zeros(len(wins)), wins + wins.T
    for _ in range(50):
        p = 1 / (1 + np.exp(strengths[None] - strengths[:, None]))
        gradient = (wins - played * p).sum(1)
        curvature = played * p * (1 - p)
        fisher = np.diag(curvature.sum(1)) - curvature
        strengths = strengths + np.linalg.pinv(fisher) @ gradient
    return strengths - strengths.mean()


def tilted(reference: np.ndarray, rewards: np.ndarray, beta: float) -> np.ndarray:
    weights = reference * np.exp((rewards - rewards.max()) / beta)
    return weights / weights.sum()


def dpo_mle(wins: np.ndarray, reference: np.ndarray, beta: float) -> np.ndarray:
    """(K,) the policy that minimises the production loss on the comparisons, from the reference."""
    log_reference = torch.from_numpy(np.log(reference))
    logits = log_reference.clone().requires_grad_()
    pairs = [(i, j) for i in range(len(wins)) for j in range(len(wins)) if i != j]
    first, second = (torch.tensor([pair[side] for pair in pairs]) for side in range(2))
    weights = torch.tensor([wins[pair] for pair in pairs], dtype=torch.float64)

    def loss() -> Tensor:
        logprobs = logits.log_softmax(0)
        chosen, rejected = (summed(logprobs[side], log_reference[side]) for side in (first, second))
        return (weights / weights.sum() * DPO(beta=beta)(chosen, rejected)).sum()

    minimised(loss, logits)
    return logits.detach().softmax(0).numpy()


def test_tabular_dpo_is_bradley_terry_and_the_exponential_tilt() -> None:
    rng = np.random.default_rng(5)
    strengths, reference = 0.7 * rng.normal(size=6), rng.dirichlet(3 * np.ones(6))
    wins = comparisons(strengths, 40, rng)
    expected = tilted(reference, bradley_terry_mle(wins), 0.5)
    np.testing.assert_allclose(dpo_mle(wins, reference, 0.5), expected, atol=1e-8)
    flat = np.ones(6) / 6
    assert np.abs(dpo_mle(wins, flat, 0.5) - expected).max() > 0.02  # the reference is read
    assert np.abs(dpo_mle(wins, reference, 0.6) - expected).max() > 0.02  # and so is β


def test_kl_of_a_finite_sample_is_its_prediction() -> None:
    """E KL(π_DPO‖π*) ≈ tr[(diag π* − π*π*ᵀ)·pinv(Fisher)]/(2β²) (numerics E10 b), N = 15,000 comparisons.

    The Newton solver stands in for the loss after the test above has shown that both end at the same place.
    """
    rng = np.random.default_rng(5)
    strengths, reference, beta = 0.7 * rng.normal(size=6), rng.dirichlet(3 * np.ones(6)), 0.5
    best, rounds = tilted(reference, strengths, beta), 1000
    p = 1 / (1 + np.exp(strengths[None] - strengths[:, None]))
    curvature = rounds * p * (1 - p) * (1 - np.eye(6))
    fisher = np.diag(curvature.sum(1)) - curvature
    predicted = np.trace((np.diag(best) - np.outer(best, best)) @ np.linalg.pinv(fisher)) / (2 * beta**2)
    found = []
    for trial in range(300):
        wins = comparisons(strengths, rounds, rng)
        policy = tilted(reference, bradley_terry_mle(wins), beta)
        if trial < 3:
            np.testing.assert_allclose(dpo_mle(wins, reference, beta), policy, atol=1e-7)
        found.append((policy * np.log(policy / best)).sum())
    assert predicted == pytest.approx(9.7e-4, rel=0.02)
    assert 0.85 < np.mean(found) / predicted < 1.15


# KTO


def test_kto_is_its_formula() -> None:
    loss = KTO(beta=0.3, desirable_weight=1.2, undesirable_weight=0.7)
    logprobs, reference = row(-2.0, -3.0, -1.0), row(-2.5, -1.0, -1.0)
    good = torch.tensor([True, False, False])
    z = loss.baseline(torch.tensor(2.0, dtype=torch.float64))
    expected = [1.2 * (1 - sigmoid(0.15 - 0.6)), *(0.7 * (1 - sigmoid(0.6 - r)) for r in (-0.6, 0.0))]
    assert loss(summed(logprobs, reference), good, z).tolist() == pytest.approx(expected, rel=1e-12)


def test_baseline_is_never_negative_and_takes_no_gradient() -> None:
    ratio = row(0.5).requires_grad_()
    assert KTO(beta=0.3).baseline(ratio.sum()).item() == pytest.approx(0.15)
    assert not KTO().baseline(ratio.sum()).requires_grad
    assert KTO().baseline(row(-3.0).sum()).item() == 0.0


def test_kto_at_the_reference_is_half_the_weights() -> None:
    zeros, good = row(0.0, 0.0), torch.tensor([True, False])
    loss = KTO(desirable_weight=3.0, undesirable_weight=0.5)
    assert loss(summed(zeros), good, torch.tensor(0.0)).tolist() == [1.5, 0.25]


def test_gradient_of_kto_is_that_of_finite_differences() -> None:
    good = torch.tensor([True, False, True])
    reference, z = row(-2.0, -1.0, -4.0), torch.tensor(0.3, dtype=torch.float64)
    logprobs = row(-1.0, -1.5, -3.0).requires_grad_()
    assert gradcheck(lambda given: KTO(beta=0.5)(summed(given, reference), good, z), (logprobs,))


def test_kto_of_two_answers_ends_where_their_pulls_balance() -> None:
    """Good with probability q, its pulls λ_D·q·σ′ and λ_U·(1 − q)·σ′ leave the sign alone: it runs away."""
    for q, sign in ((0.8, 1.0), (0.2, -1.0)):
        r = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        for _ in range(200):
            loss = q * KTO(beta=1.0)(summed(r), torch.tensor([True]), torch.tensor(0.0))
            loss = loss + (1 - q) * KTO(beta=1.0)(summed(r), torch.tensor([False]), torch.tensor(0.0))
            (gradient,) = torch.autograd.grad(loss.sum(), r)
            r.data -= gradient
        assert sign * r.item() > 3.0


# Rewards and refusals


def test_rewards_rank_by_what_each_loss_trains() -> None:
    tokens, reference = sides()
    (better, _), lengths = responses(tokens, reference), torch.tensor(LENGTHS[0])
    total = torch.stack([tokens[0][i, :n].sum() for i, n in enumerate(LENGTHS[0])])
    ratio = total - reference[0]
    expected: dict[Any, Tensor] = {
        DPO: 0.3 * ratio,
        ConservativeDPO: 0.3 * ratio,
        IPO: 0.7 * ratio,
        Hinge: 0.3 * ratio,
        ORPO: torch.logit((total / lengths).exp()),
        SimPO: 1.7 * total / lengths,
        Unlikelihood: total,
        PreferredFT: total,
    }
    for loss in PAIRED:
        torch.testing.assert_close(loss.reward(better), expected[type(loss)])
    torch.testing.assert_close(KTO(beta=0.2).reward(better), 0.2 * ratio)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPO(beta=0), "DPO.beta must be positive, got 0"),
        (lambda: DPO(beta=math.nan), "DPO.beta must be positive, got nan"),
        (lambda: ConservativeDPO(label_smoothing=0.5), r"label_smoothing must be in \[0, 0.5\), got 0.5"),
        (lambda: ConservativeDPO(beta=-1), "ConservativeDPO.beta must be positive, got -1"),
        (lambda: IPO(tau=0), "IPO.tau must be positive, got 0"),
        (lambda: Hinge(margin=0), "Hinge.margin must be positive, got 0"),
        (lambda: ORPO(coef=0), "ORPO.coef must be positive, got 0"),
        (lambda: SimPO(margin=-1), "SimPO.margin must not be negative, got -1"),
        (lambda: Unlikelihood(coef=0), "Unlikelihood.coef must be positive, got 0"),
        (lambda: KTO(desirable_weight=-1), "KTO.desirable_weight must not be negative, got -1"),
        (lambda: KTO(beta=0), "KTO.beta must be positive, got 0"),
    ],
)
def test_values_out_of_range_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
