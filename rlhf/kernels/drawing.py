"""A token from each row's distribution, by inverting the cumulative distribution."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf.kernels.cpu_decode import draw_tokens, has_draw


class Drawn(NamedTuple):
    """One token a row, and what the distribution that it was drawn from says."""

    tokens: Tensor
    """(B,) int64."""
    logprobs: Tensor
    """(B,) float32 log-prob of the token."""
    entropies: Tensor
    """(B,) float32 entropy of the distribution, in nats."""


def drawn(logits: Tensor, noise: Tensor, *, temperature: float, floors: Tensor | None = None) -> Drawn:
    """Draw from softmax(logits / temperature) over the logits that are not below their row's floor.

    Sums are made in float64, so that rare tokens keep their probability.

    Args:
        logits: (B, V) float32.
        noise: (B,) float64, uniform in [0, 1); the first token whose cumulative probability exceeds it.
        temperature: positive.
        floors: (B,) float32; None draws from all.
    """
    if has_draw(logits) and noise.dtype == torch.float64:
        return Drawn(*draw_tokens(logits, noise, temperature, floors))
    return _by_torch(logits, noise, temperature, floors)


def drawn_bytes(device: torch.device) -> int:
    """What :func:`drawn` holds for a logit, itself included: nothing else in C++, float64 sums in torch."""
    return 4 if device.type == "cpu" and has_draw(torch.empty(0, device=device)) else 25


def _by_torch(logits: Tensor, noise: Tensor, temperature: float, floors: Tensor | None) -> Drawn:
    if floors is not None:
        logits = logits.masked_fill(logits < floors.unsqueeze(1), -torch.inf)
    logprobs = (logits / temperature).log_softmax(1)
    cumulative = logprobs.double().exp().cumsum(1)
    level = noise.unsqueeze(1) * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, level, right=True)  # the first that exceeds level < total
    last = cumulative.argmax(1, keepdim=True)  # where rounding lifts the level, the last that can be drawn
    tokens = tokens.clamp(max=logits.shape[1] - 1)  # of NaN none does; the log-prob is NaN too
    tokens = torch.where(cumulative[:, -1:].isnan(), tokens, torch.minimum(tokens, last))
    summands = torch.where(logprobs == -torch.inf, 0.0, logprobs * logprobs.exp())
    return Drawn(tokens.squeeze(1), logprobs.gather(1, tokens).squeeze(1), -summands.sum(1))
