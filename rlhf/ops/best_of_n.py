"""Best-of-n sampling: draw n responses, keep the first of those with the highest score (numerics D54)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def best_of_n_kl_bound(n: int) -> float:
    """Upper bound log n − (n−1)/n of KL(best-of-n‖π), in nats (Stiennon et al. 2020; numerics D54).

    Equality holds only where no two responses tie and no response has a probability of its own
    (Beirami et al. 2024).

    Raises:
        ValueError: n is less than 1.
    """
    if n < 1:
        raise ValueError(f"best_of_n_kl_bound: n must be at least 1, got {n}")
    return math.log(n) - (n - 1) / n


def best_rows(scores: Tensor, n: int) -> Tensor:
    """(B/n,) number of the row with the first highest score in each run of ``n`` of the (B,) ``scores``."""
    runs = scores.reshape(-1, n)
    return runs.argmax(1) + n * torch.arange(len(runs), device=scores.device)


def best_of_n_means(scores: Tensor, values: Tensor | None = None) -> Tensor:
    """Unbiased estimates of the mean value of the best of n, for every n at once, from N samples a prompt.

        Ê_n = Σᵢ C(i−1, n−1) / C(N, n) · v₍ᵢ₎,   i = 1 … N by ascending score

    the mean over all subsets of n of the N samples (WebGPT, Nakano et al. 2021, appendix I; numerics D54).
    Samples of equal score are the best of a subset equally often, so that each has their mean value. The
    weights of n + 1 are those of n times (i − n)/(N − n) · (n + 1)/n, none of them negative: nothing cancels,
    and the error grows by a few roundings a step. One sort, then N operations for each n.

    Args:
        scores: (P, N) by which the best is chosen; N independent samples to each of P prompts, finite.
        values: (P, N) what is averaged, such as a judge's verdict; the scores themselves when None.

    Returns:
        (P, N) float64; column n − 1 is that of the best of n.
    """
    ordered, order = scores.double().sort(1)
    worth = ordered if values is None else _means_of_ties(ordered, values.double().gather(1, order))
    samples = scores.shape[1]
    rank = torch.arange(1, samples + 1, dtype=torch.float64, device=scores.device)  # i
    weights = torch.full_like(rank, 1 / samples)
    means = [worth @ weights]
    for n in range(1, samples):
        weights = weights * ((rank - n) / (samples - n) * (n + 1) / n)  # 0 from here on for i ≤ n
        means.append(worth @ weights)
    return torch.stack(means, 1)


def best_of_n_curve(scores: Tensor, values: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(N,) the mean of ``best_of_n_means`` over the prompts, and (N,) its standard error over them.

    Raises:
        ValueError: there is one prompt only.
    """
    means = best_of_n_means(scores, values)
    if len(means) < 2:
        raise ValueError(f"best_of_n_curve: at least 2 prompts are needed for an error, got {len(means)}")
    return means.mean(0), means.std(0) / math.sqrt(len(means))


def best_of_n_pmf(scores: Tensor, probabilities: Tensor, n: int) -> Tensor:
    """Probability of each of all responses to be the one that best-of-n keeps.

        q(y) = (F(y)ⁿ − F₋(y)ⁿ) · p(y) / (F(y) − F₋(y))

    with F the probability of a score up to that of y and F₋ of a lower one: the kept response has the highest
    of n scores, and which of those that tie comes first is a draw from p among them (numerics E11).

    Args:
        scores: (Y,) of every response.
        probabilities: (Y,) of every response, in all 1.
        n: responses drawn.

    Returns:
        (Y,) float64, in all 1.
    """
    p = probabilities.double()
    _, level = scores.unique(return_inverse=True)  # 0, 1, … by ascending score
    mass = p.new_zeros(int(level.max()) + 1).index_add(0, level, p)
    below_or_here = mass.cumsum(0)
    share = torch.where(mass > 0, mass / below_or_here, 0.0)
    kept = below_or_here**n * -torch.expm1(n * torch.log1p(-share))  # Fⁿ − F₋ⁿ without cancellation
    return torch.where(mass > 0, kept / mass, 0.0)[level] * p


def best_of_n_kl(scores: Tensor, probabilities: Tensor, n: int) -> float:
    """KL(best-of-n‖π) in nats, exactly, over all responses; arguments as of ``best_of_n_pmf``."""
    kept, p = best_of_n_pmf(scores, probabilities, n), probabilities.double()
    return float(torch.where(kept > 0, kept * (kept / p).log(), 0.0).sum())


def _means_of_ties(ordered: Tensor, values: Tensor) -> Tensor:
    """(P, N) values, each replaced by the mean of those whose (P, N) ascending scores are equal."""
    block = torch.zeros_like(ordered, dtype=torch.int64)
    block[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(1)
    nothing = torch.zeros_like(values)
    total = nothing.scatter_add(1, block, values)
    count = nothing.scatter_add(1, block, torch.ones_like(values))
    return (total / count.clamp(min=1)).gather(1, block)
