"""From one score per response to one reward per token."""

from __future__ import annotations

import torch
from torch import Tensor


def missing_eos(scores: Tensor, ended: Tensor, replacement: float) -> Tensor:
    """``replacement`` instead of the score of every response that was cut off (numerics D28).

    Args:
        scores: (B,) score of each response.
        ended: (B,) bool, the response ended by itself.
        replacement: the score of a cut response, in units of the score.

    Returns:
        (B,) scores; what the reward model said of a cut response is not read.
    """
    return torch.where(ended, scores, replacement)


def overlong_penalty(lengths: Tensor, *, limit: int, buffer: float) -> Tensor:
    """What a response loses for coming near the length limit (DAPO, Yu et al. 2025, eq. 13; numerics D29).

        0                              len ≤ L − C
        (L − C − len)/C      L − C  <  len ≤ L
        −1                         L < len

    Args:
        lengths: (B,) tokens of each response, the end token included.
        limit: L, the longest response, in tokens.
        buffer: C, in tokens; positive.

    Returns:
        (B,) float32 from −1 to 0, in units of the score.
    """
    return ((limit - buffer - lengths) / buffer).clamp(-1.0, 0.0)


def token_rewards(scores: Tensor, penalty: Tensor, mask: Tensor) -> Tensor:
    """The score at the last real token, minus the penalty of each token (numerics D27).

        Rₜ = 1[t = last]·score − penaltyₜ,   so   Σₜ Rₜ = score − Σₜ penaltyₜ

    Args:
        scores: (B,) score of each response.
        penalty: (B, T) cost of each token, e.g. β·k1; not read on padding.
        mask: (B, T) bool, True on response tokens, a prefix of each row.

    Returns:
        (B, T) rewards, 0 on padding; all 0 on a row without a token, whose score is not read.
    """
    following = torch.zeros_like(mask)
    following[:, :-1] = mask[:, 1:]
    last = mask & ~following
    return torch.where(last, scores[:, None], 0.0) - torch.where(mask, penalty, 0.0)
