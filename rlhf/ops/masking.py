"""Masks and statistics over their True positions, on one rank or over all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Total = Callable[[Tensor], Tensor]
"""Sums a tensor element by element over all ranks; the identity in a run of one process."""


def response_mask(responses: Tensor, end_ids: Sequence[int] | Tensor) -> Tensor:
    """True on each response up to and including its first end token (numerics D5).

        maskₜ = (number of end tokens before t) == 0

    Args:
        responses: (B, T) int64 token ids.
        end_ids: ids that end a response, at least one.

    Returns:
        (B, T) bool; all True on a row without an end token.
    """
    ends = torch.isin(responses, torch.as_tensor(end_ids, device=responses.device)).long()
    return ends.cumsum(1) - ends == 0


@dataclass(kw_only=True, slots=True)
class Moments:
    """Count, mean and population variance of one sample, as () float64 tensors."""

    count: Tensor
    mean: Tensor
    variance: Tensor


def masked_moments(x: Tensor, mask: Tensor, total: Total) -> Moments:
    """Moments of ``x`` over the True positions of all ranks, from one reduction (numerics D37).

        mean = Σx / n        variance = Σx² / n − mean²

    A variance below 1e-13 of the mean square is the rounding of the sums and is returned as 0, so that
    equal numbers have variance 0 exactly.

    Args:
        x: any shape; what it holds where the mask is False is not read.
        mask: bool, shape of ``x``.
        total: sums over ranks.

    Raises:
        ValueError: no position is True on any rank.
    """
    real = torch.where(mask, x, 0.0).double()
    sums = total(torch.stack([real.sum(), real.square().sum(), mask.sum().double()]))
    if sums[2] == 0:
        raise ValueError("masked_moments: the mask has no True position on any rank, needs at least 1")
    mean, mean_square = sums[0] / sums[2], sums[1] / sums[2]
    variance = mean_square - mean.square()
    variance = torch.where(variance > 1e-13 * mean_square, variance, 0.0)
    return Moments(count=sums[2], mean=mean, variance=variance)


def whiten(x: Tensor, mask: Tensor, total: Total, *, eps: float = 1e-8) -> Tensor:
    """``x`` centred and scaled to unit population variance over the True positions of all ranks (D33).

        (x − mean) / √(variance + eps)

    It always centres; equal numbers become 0.

    Args:
        x: (B, T).
        mask: (B, T) bool.
        total: sums over ranks.
        eps: added to the variance, in squared units of ``x``.

    Returns:
        (B, T) in the dtype of ``x``, 0 where the mask is False.

    Raises:
        ValueError: no position is True on any rank.
    """
    moments = masked_moments(x, mask, total)
    scaled = (torch.where(mask, x, 0.0).double() - moments.mean) / (moments.variance + eps).sqrt()
    return torch.where(mask, scaled, 0.0).to(x.dtype)
