"""What the head's functions are given: checked, and flattened to the rows that take part."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.kernels.rows import Reading
from rlhf.kernels.workspace import wide


@dataclass(kw_only=True, slots=True)
class Tokens:
    """The M tokens that the mask keeps, of all shapes (…) flattened to one."""

    hidden: Tensor
    """(M, H)."""
    reading: Reading
    kept: Tensor | None
    """(M,) their indices among all; None where all are kept."""
    shape: torch.Size
    """Of the caller's targets."""

    def keep(self, values: Tensor) -> Tensor:
        """(…) → (M,), what stands where the mask is True."""
        flat = values.reshape(-1)
        return flat.contiguous() if self.kept is None else flat[self.kept]

    def place(self, values: Tensor) -> Tensor:
        """(M,) → (…), 0 where the mask is False."""
        if self.kept is None:
            return values.reshape(self.shape)
        everywhere = values.new_zeros(self.shape.numel())
        return everywhere.index_copy(0, self.kept, values).reshape(self.shape)


def flatten(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float | Tensor,
    *,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    mask: Tensor | None,
) -> Tokens:
    """The arguments of `rlhf.kernels.linear_logprobs.linear_logprobs`, which names shapes and errors.

    Targets and temperatures on a GPU are not read here, which would make the host wait: a target outside
    the vocabulary has the log-prob NaN there.
    """
    _expect_shapes(hidden, weight, targets, bias, mask)
    _expect_positive("temperature", temperature)
    _expect_positive("softcap", softcap)
    states, cooling = hidden.reshape(-1, hidden.shape[-1]), _cooling(temperature, targets, wide(hidden.dtype))
    if states.stride(1) != 1:
        states = states.contiguous()  # as rows taken from it are: one back end for both
    reading = Reading(targets=targets.reshape(-1).contiguous(), cooling=cooling, scale=scale, softcap=softcap)
    kept = None
    if mask is not None:
        kept = mask.reshape(-1).nonzero().squeeze(1)
        states, reading = states.index_select(0, kept), reading.rows(kept)
    _expect_targets(reading.targets, weight.shape[0])
    return Tokens(hidden=states, reading=reading, kept=kept, shape=targets.shape)


def flatten_logits(logits: Tensor, targets: Tensor, temperature: float | Tensor) -> tuple[Tensor, Reading]:
    """(M, V) rows of the logits and how they are read."""
    if targets.dtype != torch.int64 or targets.shape != logits.shape[:-1]:
        found, expected = tuple(targets.shape), tuple(logits.shape[:-1])
        raise ValueError(f"targets are {targets.dtype} of shape {found}, expected torch.int64 of {expected}")
    _expect_positive("temperature", temperature)
    _expect_targets(targets, logits.shape[-1])
    cooling = _cooling(temperature, targets, wide(logits.dtype))
    reading = Reading(targets=targets.reshape(-1).contiguous(), cooling=cooling, scale=1.0, softcap=None)
    return logits.reshape(-1, logits.shape[-1]), reading


def _cooling(temperature: float | Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor | float:
    if not isinstance(temperature, Tensor):
        return 1.0 / temperature
    return temperature.detach().to(dtype).reciprocal().expand(targets.shape).reshape(-1).contiguous()


def _expect_shapes(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, mask: Tensor | None
) -> None:
    if weight.dim() != 2 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)} and weight {tuple(weight.shape)}, "
            "expected (…, H) and (V, H)"
        )
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden is {hidden.dtype} and weight {weight.dtype}, expected one dtype")
    if targets.dtype != torch.int64:
        raise ValueError(f"targets are {targets.dtype}, expected torch.int64")
    expected = {"targets": (targets, hidden.shape[:-1]), "mask": (mask, hidden.shape[:-1])}
    for name, (tensor, shape) in {**expected, "bias": (bias, weight.shape[:1])}.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}")


def _expect_positive(name: str, value: float | Tensor | None) -> None:
    if isinstance(value, Tensor):
        if not value.is_cuda and not bool(((value > 0) & value.isfinite()).all()):
            raise ValueError(f"every {name} must be positive and finite, got {float(value.min())}")
    elif value is not None and not 0.0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value}")


def _expect_targets(targets: Tensor, vocabulary: int) -> None:
    if targets.is_cuda or targets.numel() == 0:
        return
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= vocabulary:
        raise ValueError(f"targets run from {low} to {high}, expected [0, {vocabulary})")
