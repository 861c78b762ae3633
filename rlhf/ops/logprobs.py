"""Log-probabilities, entropy and exact KL of categorical distributions given by logits.

Everything is computed in float32 at least, numerator and denominator from the same logits (numerics D11):
mixing an exact target logit with the logsumexp of rounded ones is off by 1e-2 for near-certain tokens.
Logits are finite; the temperature divides them in every quantity here (numerics D10).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class TokenLogprobs(NamedTuple):
    """What a policy says of given tokens; a tuple, so that ZeRO-3's hooks see the tensors."""

    logprobs: Tensor
    """log π of each token, nats."""
    entropies: Tensor
    """Entropy of the distribution that each token was drawn from, nats."""


def vocabulary_logprobs(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(z / temperature) over the last dimension.

    Args:
        logits: (…, V) finite, any floating dtype.
        temperature: positive.

    Returns:
        (…, V) float32; float64 for float64 logits.

    Raises:
        ValueError: the temperature is not a positive number.
    """
    if not 0.0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (scores if temperature == 1.0 else scores / temperature).log_softmax(-1)


def token_logprobs(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """log π(target) = z_target / temperature − logsumexp(z / temperature).

    Args:
        logits: (…, V) finite.
        targets: (…) int64 in [0, V).
        temperature: positive.

    Returns:
        (…) float32, never positive.
    """
    return _gather(vocabulary_logprobs(logits, temperature), targets)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """H = logsumexp(z) − Σ_v p_v·z_v = −Σ_v p_v·log p_v, z after the temperature (numerics D44).

    Args:
        logits: (…, V) finite.
        temperature: positive.

    Returns:
        (…) float32 nats, between 0 and log V.
    """
    return _entropy(vocabulary_logprobs(logits, temperature))


def logprobs_and_entropies(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> TokenLogprobs:
    """:func:`token_logprobs` and :func:`entropy` from one softmax."""
    logprobs = vocabulary_logprobs(logits, temperature)
    return TokenLogprobs(_gather(logprobs, targets), _entropy(logprobs))


def exact_kl(logits_p: Tensor, logits_q: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p‖q) = Σ_v p_v·(log p_v − log q_v) over the whole vocabulary, no sampling.

    Args:
        logits_p: (…, V) finite.
        logits_q: (…, V) finite.
        temperature: positive; of both.

    Returns:
        (…) float32 nats.

    Raises:
        ValueError: the two vocabularies differ in size.
    """
    if logits_p.shape != logits_q.shape:
        raise ValueError(f"exact_kl: logits have shapes {tuple(logits_p.shape)} and {tuple(logits_q.shape)}")
    log_p = vocabulary_logprobs(logits_p, temperature)
    return (log_p.exp() * (log_p - vocabulary_logprobs(logits_q, temperature))).sum(-1)


def _gather(logprobs: Tensor, targets: Tensor) -> Tensor:
    return logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def _entropy(logprobs: Tensor) -> Tensor:
    return -(logprobs.exp() * logprobs).sum(-1)
