"""Losses on pairs of scores or log-probs, one number per pair or response; they reduce nothing."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor, label: float | Tensor = 1.0) -> Tensor:
    """Negative log-likelihood of a comparison (Bradley and Terry 1952; margin: Llama 2; numerics D22, D24).

        Δ = s_chosen − s_rejected − margin
        loss = −μ·log σ(Δ) − (1 − μ)·log σ(−Δ)

    Args:
        chosen: (B,) scores of the responses named first.
        rejected: (B,) scores of the others.
        margin: (B,) by how much the first score should exceed the other.
        label: μ, a number or (B,): 1 when the first is better, ½ for a tie, 0 when it is worse.

    Returns:
        (B,) nats per pair.
    """
    gap = chosen - rejected - margin
    return -(label * F.logsigmoid(gap) + (1 - label) * F.logsigmoid(-gap))


def centring(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(s_chosen + s_rejected)², which pins the mean score that comparisons leave free (numerics D22).

    Args:
        chosen: (B,) scores of the better responses.
        rejected: (B,) scores of the others.

    Returns:
        (B,) squared units of the score.
    """
    return (chosen + rejected).square()


def squared_gap(gap: Tensor, *, tau: float) -> Tensor:
    """Identity preference optimisation: (h − 1/(2τ))² (Azar et al. 2023, eq. 17; numerics D53).

    Args:
        gap: (B,) h = log-ratio of the chosen response minus that of the other, sums over their tokens.
        tau: τ, nats⁻¹ per unit of preference; the gap of preferences that never err is 1/(2τ).

    Returns:
        (B,) nats² per pair.
    """
    return (gap - 1 / (2 * tau)).square()


def hinge(gap: Tensor, *, margin: float) -> Tensor:
    """max(0, margin − gap): nothing is gained beyond the margin (SLiC, Zhao et al. 2023; Liu et al. 2024).

    Args:
        gap: (B,) reward of the chosen response minus that of the other.
        margin: the gap that is enough.

    Returns:
        (B,) units of the reward, per pair.
    """
    return F.relu(margin - gap)


def log1mexp(logprobs: Tensor, *, eps: float = 1e-6) -> Tensor:
    """log(1 − eˣ), the log-prob of everything else, for x < 0.

    Args:
        logprobs: any shape, at most 0; one above −eps counts as −eps, without gradient, for there float32
            log-probs are rounding and the logarithm would be infinite.
        eps: nats.

    Returns:
        shape of ``logprobs``, from log(eps) to 0.
    """
    x = logprobs.clamp(max=-eps)
    near = x > -math.log(2)  # each form is exact on its own side (Mächler 2012)
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, x))),
    )


def unlikelihood(logprobs: Tensor, mask: Tensor) -> Tensor:
    """−Σₜ log(1 − π(yₜ)): every token of a bad response is pushed away (Welleck et al. 2020, eq. 4).

    Args:
        logprobs: (B, T) of each token.
        mask: (B, T) bool, True on the response's tokens.

    Returns:
        (B,) nats per response.
    """
    return -torch.where(mask, log1mexp(torch.where(mask, logprobs, -1.0)), 0.0).sum(1)


def log_odds(logprobs: Tensor) -> Tensor:
    """log(p/(1 − p)) of p = eˣ (Hong et al. 2024, eq. 4).

    Args:
        logprobs: (B,) mean log-prob of the tokens of each response, below 0.

    Returns:
        (B,).
    """
    return logprobs - log1mexp(logprobs)


def prospect(rewards: Tensor, desirable: Tensor, baseline: Tensor, *, gain: float, loss: float) -> Tensor:
    """Kahneman–Tversky optimisation: λ − v of each response (Ethayarajh et al. 2024, eq. 7 and 8).

        v = λ_D·σ(r − z)  where desirable,  λ_U·σ(z − r)  where not

    Args:
        rewards: (B,) r = β·log(π/π_ref) of each response.
        desirable: (B,) bool.
        baseline: () z, the reward that counts as neither gain nor loss; takes no gradient.
        gain: λ_D, weight of desirable responses.
        loss: λ_U, weight of the others.

    Returns:
        (B,) from 0 to the weight.
    """
    gap = rewards - baseline.detach()
    return torch.where(desirable, gain * torch.sigmoid(-gap), loss * torch.sigmoid(gap))
