"""How much of the returns' variance the critic explains."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.ops.masking import Total, masked_moments


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor, total: Total) -> Tensor:
    """1 − Var(R − V)/Var(R) over the True positions of all ranks (numerics D36).

    1 is a perfect critic, 0 one no better than a constant, and less than 0 a worse one.

    Args:
        values: (B, T) critic's value of the state before each token.
        returns: (B, T) what it should have been.
        mask: (B, T) bool.
        total: sums over ranks.

    Returns:
        () float64; nan when all returns are equal, where the ratio is undefined.

    Raises:
        ValueError: no position is True on any rank.
    """
    variance = masked_moments(returns, mask, total).variance
    residual = masked_moments(returns - values, mask, total).variance
    return torch.where(variance > 0, 1 - residual / variance, torch.nan)
