"""Best-of-n sampling: draw n responses, keep the best score."""

from __future__ import annotations

import math


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
