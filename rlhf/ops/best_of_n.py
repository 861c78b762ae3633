"""Best-of-n sampling: draw n responses, keep the best score."""

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


def best_of_n_mean(proxy: Tensor, gold: Tensor, n: int) -> Tensor:
    """Expected gold score of the best of n by proxy, from N ≥ n samples of one prompt (numerics D54).

        Σᵢ C(i−1, n−1)/C(N, n)·gold₍ᵢ₎,   samples sorted by proxy ascending

    It is the average over all subsets of n samples, hence unbiased; of equal proxies the lowest index wins.

    Args:
        proxy: (N,) the score that chooses.
        gold: (N,) the score that is reported.
        n: samples to choose from, 1 to N.

    Returns:
        () float64.

    Raises:
        ValueError: n is not from 1 to N.
    """
    samples = len(proxy)
    if not 1 <= n <= samples:
        raise ValueError(f"best_of_n_mean: n must be from 1 to the {samples} samples, got {n}")
    ascending = samples - 1 - proxy.flip(0).argsort(stable=True)  # of equals, the lowest index comes last
    chances = [math.comb(i, n - 1) / math.comb(samples, n) for i in range(samples)]
    return torch.tensor(chances, dtype=torch.float64, device=gold.device) @ gold[ascending].double()
