"""Per-token estimators of KL(π‖π_ref) from the sampled tokens (Schulman 2020, "Approximating KL divergence").

With ρ = π_ref/π at the sampled token. Value and gradient are different matters: each function says what
its expectation is and what descending its gradient does (numerics D17).
"""

from __future__ import annotations

import torch
from torch import Tensor


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Log-ratio −log ρ: unbiased, may be negative.

    Detached and charged as a reward its policy gradient is ∇KL(π‖π_ref), exactly. As a loss its expected
    gradient is 0.

    Args:
        logprobs: (B, T) log π of each token.
        ref_logprobs: (B, T) log π_ref of each token.

    Returns:
        (B, T) nats per token.
    """
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Half the squared log-ratio, (log ρ)²/2: biased, never negative.

    As a loss on a single step its expected gradient is ∇KL(π‖π_ref); per token of a longer response it
    leaves out the KL of the tokens that follow.

    Args:
        logprobs: (B, T) log π of each token.
        ref_logprobs: (B, T) log π_ref of each token.

    Returns:
        (B, T) nats per token.
    """
    return 0.5 * (logprobs - ref_logprobs).square()


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """ρ − 1 − log ρ: unbiased, never negative, of lower variance than k1 near the reference.

    As a loss on a single step its expected gradient is that of the *forward* KL(π_ref‖π), whose fixed
    point is not π_ref·exp(r/β)/Z.

    Args:
        logprobs: (B, T) log π of each token.
        ref_logprobs: (B, T) log π_ref of each token.

    Returns:
        (B, T) nats per token.
    """
    log_rho = ref_logprobs - logprobs
    return torch.expm1(log_rho) - log_rho
