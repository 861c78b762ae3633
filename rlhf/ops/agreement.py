"""How far annotators agree beyond chance, on labels from C categories. Everything is float64.

1 is agreement throughout, 0 what independent labels of the same frequencies show, below 0 is less.
All are NaN where only one category was ever given, for then chance agrees too.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cohen_kappa(first: Tensor, second: Tensor) -> float:
    """Two annotators who labelled the same items (Cohen 1960).

        κ = (p_o − p_e)/(1 − p_e),   p_e = Σ_c p_first(c)·p_second(c)

    Args:
        first: (N,) int64 category that one annotator gave each item.
        second: (N,) int64 that of the other.

    Raises:
        ValueError: no item, or unequal numbers of them.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"cohen_kappa: {len(first)} and {len(second)} labels, needs equally many of each")
    categories = int(torch.cat([first, second]).max()) + 1
    shares = [torch.bincount(side, minlength=categories).double() / len(side) for side in (first, second)]
    observed = (first == second).double().mean()
    return _beyond_chance(observed, shares[0] @ shares[1])


def fleiss_kappa(counts: Tensor) -> float:
    """Any number of annotators, equally many for each item and not always the same ones (Fleiss 1971).

        P_i = (Σ_c n_ic² − n)/(n·(n − 1)),   κ = (P̄ − P_e)/(1 − P_e),   P_e = Σ_c p_c²

    Args:
        counts: (N, C) how many annotators put item i in category c.

    Raises:
        ValueError: no item, fewer than two annotators for one, or unequal numbers of them.
    """
    counts = counts.double()
    raters = counts.sum(1)
    if not len(counts) or raters[0] < 2 or (raters != raters[0]).any():
        raise ValueError("fleiss_kappa: every item needs the same number of annotators, at least 2")
    n = raters[0]
    agreement = (counts.square().sum(1) - n) / (n * (n - 1))
    return _beyond_chance(agreement.mean(), (counts.sum(0) / counts.sum()).square().sum())


def krippendorff_alpha(counts: Tensor, distance: Tensor | None = None) -> float:
    """Any numbers of annotators and missing labels (Krippendorff 2011, Computing Krippendorff's
    Alpha-Reliability).

        o_ck = Σ_u n_uc·(n_uk − δ_ck)/(m_u − 1),   α = 1 − (n − 1)·Σ o_ck·d_ck / Σ n_c·n_k·d_ck

    over the units u with m_u ≥ 2 labels; n_c = Σ_k o_ck, n = Σ_c n_c.

    Args:
        counts: (N, C) how many annotators put unit u in category c.
        distance: (C, C) squared difference d_ck of categories, 0 on its diagonal; 1 for all that differ when
            None (nominal).

    Raises:
        ValueError: no unit has two labels.
    """
    counts = counts.double()[counts.sum(1) >= 2]
    if not len(counts):
        raise ValueError("krippendorff_alpha: no item was labelled twice")
    categories = counts.shape[1]
    apart = 1 - torch.eye(categories, dtype=torch.float64) if distance is None else distance.double()
    weighted = counts / (counts.sum(1, keepdim=True) - 1)
    together = weighted.T @ counts - torch.diag(weighted.sum(0))
    total = together.sum(1)
    observed, expected = (together * apart).sum(), total @ apart @ total / (total.sum() - 1)
    return float(1 - observed / expected)  # 0/0 is NaN


def _beyond_chance(observed: Tensor, expected: Tensor) -> float:
    return float((observed - expected) / (1 - expected)) if expected < 1 else float("nan")
