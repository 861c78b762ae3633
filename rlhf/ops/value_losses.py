"""Losses of the critic, one number per token; they reduce nothing, do not read padding and are 0 there."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_error(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """½·(V − R)².

    Args:
        values: (B, T) critic's value of the state before each token.
        returns: (B, T) its target.
        mask: (B, T) bool.

    Returns:
        (B, T) loss, 0 on padding.
    """
    return 0.5 * (torch.where(mask, values, 0.0) - torch.where(mask, returns, 0.0)).square()


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float
) -> Tensor:
    """Squared error that does not reward leaving the neighbourhood of the old value (numerics D35).

        ½·max((V − R)², (clip(V, V_old − c, V_old + c) − R)²)

    Args:
        values: (B, T) critic's value of the state before each token.
        old_values: (B, T) the same before the update.
        returns: (B, T) its target.
        mask: (B, T) bool.
        clip: c, in units of the score.

    Returns:
        (B, T) loss, 0 on padding.
    """
    values, old_values = torch.where(mask, values, 0.0), torch.where(mask, old_values, 0.0)
    near = values.clamp(old_values - clip, old_values + clip)
    return torch.maximum(squared_error(values, returns, mask), squared_error(near, returns, mask))
