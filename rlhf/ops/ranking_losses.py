"""Losses of comparisons that may end in a tie, and of rankings; reduced over a prompt's comparisons alone."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def rao_kupper_outcomes(gap: Tensor, *, tie_probability: float) -> tuple[Tensor, Tensor, Tensor]:
    """log-probs of win, tie, loss where a difference below a threshold η is not seen (Rao and Kupper 1967).

        P(win) = σ(Δ − η),  P(loss) = σ(−Δ − η),  P(tie) = (e^{2η} − 1)·P(win)·P(loss)

    η = log((1 + p)/(1 − p)) makes p the probability of a tie at Δ = 0.

    Args:
        gap: (M,) Δ, score of the first response minus that of the second.
        tie_probability: p, in (0, 1).

    Returns:
        (M,) each, of the first response's win, of a tie and of its loss.
    """
    threshold = 2 * math.atanh(tie_probability)
    win, loss = F.logsigmoid(gap - threshold), F.logsigmoid(-gap - threshold)
    return win, win + loss + math.log(math.expm1(2 * threshold)), loss


def davidson_outcomes(gap: Tensor, *, tie_probability: float) -> tuple[Tensor, Tensor, Tensor]:
    """log-probs of win, tie and loss where a tie weighs as the geometric mean of both wins (Davidson 1970).

        P(win) : P(tie) : P(loss) = e^{Δ/2} : ν : e^{−Δ/2}

    ν = 2p/(1 − p) makes p the probability of a tie at Δ = 0. Given that there is no tie, P(win) = σ(Δ).

    Args:
        gap: (M,) Δ, score of the first response minus that of the second.
        tie_probability: p, in (0, 1).

    Returns:
        (M,) each, of the first response's win, of a tie and of its loss.
    """
    tie = math.log(2 * tie_probability / (1 - tie_probability))
    logits = torch.stack([gap / 2, torch.full_like(gap, tie), -gap / 2])
    win, tied, loss = logits.log_softmax(0).unbind(0)
    return win, tied, loss


def outcome_loss(outcomes: tuple[Tensor, Tensor, Tensor], label: float | Tensor) -> Tensor:
    """Negative log-likelihood of what was judged.

    Args:
        outcomes: (M,) log-probs of win, tie and loss.
        label: μ, a number or (M,): exactly ½ is a tie; else −μ·log P(win) − (1 − μ)·log P(loss).

    Returns:
        (M,) nats per comparison.
    """
    win, tied, loss = outcomes
    label = torch.as_tensor(label, dtype=win.dtype, device=win.device)
    return -torch.where(label == 0.5, tied, label * win + (1 - label) * loss)


def best_response_loss(scores: Tensor, real: Tensor, best: Tensor) -> Tensor:
    """−log softmax of the best of K responses, a choice and no ranking (Luce 1959; numerics D23).

    Equal to Bradley–Terry at K = 2. Responses that share the first place share its weight.

    Args:
        scores: (B, K).
        real: (B, K) bool, the responses that the best was chosen from.
        best: (B, K) bool, the chosen, at least one in each row and all of them real.

    Returns:
        (B,) nats per prompt.
    """
    logprobs = torch.where(real, scores, -torch.inf).log_softmax(1)
    return -torch.where(best, logprobs, 0.0).sum(1) / best.sum(1)


def prompt_mean(values: Tensor, prompt: Tensor, prompts: int) -> Tensor:
    """Each prompt's mean over its comparisons: a prompt weighs 1, however many it has (numerics D23).

    Args:
        values: (M,) a number per comparison.
        prompt: (M,) int64 the prompt of each, in [0, prompts).
        prompts: B.

    Returns:
        (B,); 0 for a prompt without a comparison.
    """
    sums = values.new_zeros(prompts).index_add(0, prompt, values)
    return sums / torch.bincount(prompt, minlength=prompts).clamp(min=1)
