"""One problem of the head: what every contender is given, and how it is written for another process.

Needs torch only: the peers' worker reads it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

SAMPLE = 256
"""Rows of dX, and of dW, that are compared with float64: the first, the last and others between."""


@dataclass(kw_only=True, slots=True)
class HeadProblem:
    """Hidden states, weight and targets; upstream gradients; and what a clipped surrogate needs."""

    hidden: Tensor  # (M, H)
    weight: Tensor  # (V, H)
    targets: Tensor  # (M,) int64
    upstream: Tensor  # (M,) float32 d loss / d log-prob
    upstream_entropy: Tensor  # (M,) float32 d loss / d entropy
    mask: Tensor  # (M,) bool, rows outside take no part
    old_logprobs: Tensor  # (M,) float32
    advantages: Tensor  # (M,) float32, one number for each of the sequences that M divides into
    temperature: float = 1.0
    softcap: float | None = None
    sequences: int = 1
    """Rows are that many sequences of equal length, for peers that want a batch dimension."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(M, H, V)."""
        return self.hidden.shape[0], self.hidden.shape[1], self.weight.shape[0]

    @property
    def logits_bytes(self) -> int:
        """Of all logits in float32."""
        return 4 * self.shape[0] * self.shape[2]

    @property
    def flops(self) -> float:
        """G, one product of the head."""
        return 2.0 * math.prod(self.shape)

    def to(self, device: torch.device) -> HeadProblem:
        """On another device."""
        tensors = (field.name for field in fields(self) if isinstance(getattr(self, field.name), Tensor))
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})

    def save(self, path: Path) -> None:
        """For another process."""
        torch.save({field.name: getattr(self, field.name) for field in fields(self)}, path)

    @staticmethod
    def load(path: Path) -> HeadProblem:
        """What :meth:`save` wrote."""
        return HeadProblem(**torch.load(path, weights_only=True))


def sampled(count: int) -> Tensor:
    """Indices in [0, count), evenly spread, the first and the last among them."""
    return torch.linspace(0, count - 1, min(count, SAMPLE), dtype=torch.float64).round().long()


def make_problem(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    *,
    entropy: float | None = 1.0,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> HeadProblem:
    """Random and peaked: hidden states scaled to a mean ``entropy`` in nats; None leaves them flat.

    Targets are drawn from the distribution itself, as a policy's are. Everything is made on ``device``.
    """
    M, H, V = shape
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    hidden, weight = normal(M, H), normal(V, H) / math.sqrt(H)
    if entropy is not None:
        hidden *= _scale(hidden[:64], weight, min(entropy, math.log(V) / 2))
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    targets, logprobs = _drawn(hidden, weight, generator)
    sequences = max(M // 256, 1)
    moved = torch.randint(-1, 2, (M,), generator=generator, device=device) * 1.2  # clipped, not, clipped
    advantages = normal(sequences).repeat_interleave(-(-M // sequences))[:M]
    return HeadProblem(
        hidden=hidden,
        weight=weight,
        targets=targets,
        upstream=normal(M),
        upstream_entropy=normal(M),
        mask=torch.ones(M, dtype=torch.bool, device=device),
        old_logprobs=logprobs + moved,
        advantages=advantages,
        sequences=sequences,
    )


def _scale(hidden: Tensor, weight: Tensor, entropy: float) -> float:
    """Factor on the hidden states at which these rows have the mean entropy, by bisection."""
    logits = hidden @ weight.t()
    low, high = 0.0, 64.0
    for _ in range(24):
        middle = (low + high) / 2
        logprobs = (logits * middle).log_softmax(1)
        found = float(-(logprobs.exp() * logprobs).sum(1).mean())
        low, high = (middle, high) if found > entropy else (low, middle)
    return (low + high) / 2


def _drawn(hidden: Tensor, weight: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A target of each row and its log-prob."""
    targets, logprobs = [], []
    for rows in hidden.split(256):
        each = (rows @ weight.t()).float().log_softmax(1)
        drawn = torch.multinomial(each.exp(), 1, generator=generator)
        targets.append(drawn.squeeze(1))
        logprobs.append(each.gather(1, drawn).squeeze(1))
    return torch.cat(targets), torch.cat(logprobs)
