"""The gate that every timing passes in the same run: a wrong result has no speed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.head.tasks import Outputs

ROUNDINGS = {torch.float64: 1024.0, torch.float32: 64.0, torch.bfloat16: 1.0}
"""How many roundings of the largest logit an error may be. They are there to catch what is wrong, a sign, a
lost term, a column too many; how exact a right result is, C12 says."""


def tolerance(dtype: torch.dtype, largest: float) -> float:
    """Nats that a log-prob or an entropy may be off; of gradients, the share of their largest number.

    Args:
        dtype: of hidden states and weight.
        largest: |z| at most.
    """
    return ROUNDINGS[dtype] * torch.finfo(dtype).eps * max(largest, 1.0)


def errors(found: Outputs, truth: Outputs) -> dict[str, float]:
    """Largest error of each output: in nats, and of gradients and losses over the truth's largest number."""
    return {name: error(name, part, truth[name]) for name, part in found.items() if name in truth}


def mean_errors(found: Outputs, truth: Outputs) -> dict[str, float]:
    """Root mean square error of each output: in nats, and of gradients and losses over the truth's own."""
    return {name: mean_error(name, part, truth[name]) for name, part in found.items() if name in truth}


def error(name: str, found: Tensor, truth: Tensor) -> float:
    """The largest error of one output; infinite where it is not finite."""
    return _over(name, found, truth, lambda part: float(part.abs().max()))


def mean_error(name: str, found: Tensor, truth: Tensor) -> float:
    """The root mean square error of one output; infinite where it is not finite."""
    return _over(name, found, truth, lambda part: float(part.square().mean().sqrt()))


def _over(name: str, found: Tensor, truth: Tensor, size: Callable[[Tensor], float]) -> float:
    right = truth.double().cpu()
    gap = found.double().cpu() - right
    if gap.numel() == 0:
        return 0.0
    if not bool(gap.isfinite().all()):
        return float("inf")
    unit = 1.0 if name in ("logprobs", "entropies") else max(size(right), 1e-30)
    return size(gap) / unit


def fault(found: dict[str, float], allowed: float) -> str | None:
    """What makes a timing void; None where nothing does."""
    for name, size in found.items():
        if not size <= allowed:
            return f"{name} off by {size:.2g}, allowed {allowed:.2g}"
    return None
