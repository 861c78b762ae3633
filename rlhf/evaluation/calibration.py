"""Whether σ(Δr) is the probability that it claims to be: reliability diagram, ECE, log-loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot

from rlhf.evaluation.bootstrap import Bootstrap, Estimate, block_sizes
from rlhf.seeding import generator

BINS = 10
"""Of equal width over the confidences from ½ to 1."""


@dataclass(kw_only=True, slots=True)
class Bin:
    """The pairs of similar confidence."""

    low: float
    """Confidences above this, …"""
    high: float
    """… up to and with this one."""
    pairs: int
    confidence: float | None
    """Their mean; None without pairs."""
    accuracy: float | None
    """Share in which the reward's favourite is the chosen response; a tie counts ½."""


@dataclass(kw_only=True, slots=True)
class Calibration:
    """How far to believe σ(Δr) as a probability."""

    bins: list[Bin]
    ece: float
    """Expected calibration error: mean over pairs of |accuracy − confidence| of their bin."""
    ece_calibrated: float
    """What the ECE would be on average if every confidence were true: it is not 0, for pairs are few."""
    log_loss: Estimate
    """−log σ(r_chosen − r_rejected), nats per pair; log 2 = 0.693 for a coin."""


def calibration(differences: Tensor, bootstrap: Bootstrap) -> Calibration:
    """Reliability of Bradley–Terry's probabilities (Guo et al. 2017, eq. 3, on the favourite of each pair).

        confidence = σ(|Δr|)        ECE = Σ_b n_b/N · |accuracy_b − confidence_b|

    Every pair has its better response in the first place, so that the probability of the first place says
    nothing: what is judged is the confidence in the favourite, whichever it is.

    Args:
        differences: (N,) Δr = r_chosen − r_rejected.
        bootstrap: of the log-loss; its seed and number also serve ``ece_calibrated``.
    """
    differences = differences.double()
    confidences = torch.sigmoid(differences.abs())  # (N,)
    right = (differences.sign() + 1) / 2  # (N,) 1, ½ for a tie, 0
    member = one_hot(bin_index(confidences), BINS).double()  # (N, BINS)
    counts, claimed, found = member.sum(0), member.T @ confidences, member.T @ right
    return Calibration(
        bins=[_bin(number, *row) for number, row in enumerate(zip(counts, claimed, found, strict=True))],
        ece=float(_ece(right, confidences, member)),
        ece_calibrated=_expected(confidences, member, bootstrap),
        log_loss=bootstrap.mean(-logsigmoid(differences), "log-loss"),
    )


def bin_index(confidences: Tensor) -> Tensor:
    """(N,) int64 bin of each confidence in [½, 1]; an edge belongs to the bin below it, ½ to the first."""
    edges = torch.tensor([_edge(number) for number in range(1, BINS)], dtype=torch.float64)
    return torch.bucketize(confidences.double(), edges)


def _edge(number: int) -> float:
    """Where so many bins end."""
    return 0.5 + number / (2 * BINS)


def _ece(right: Tensor, confidences: Tensor, member: Tensor) -> Tensor:
    """(…) of right (…, N): n_b/N · |accuracy_b − confidence_b| is |Σ (right − confidence)| / N in the bin."""
    return ((right - confidences) @ member).abs().sum(-1) / len(confidences)


def _expected(confidences: Tensor, member: Tensor, bootstrap: Bootstrap) -> float:
    """Mean ECE of outcomes that are drawn with the claimed probabilities."""
    stream = generator(bootstrap.seed, "calibrated")
    total = 0.0
    for size in block_sizes(bootstrap.resamples, len(confidences)):
        drawn = torch.rand(size, len(confidences), generator=stream, dtype=torch.float64) < confidences
        total += float(_ece(drawn.double(), confidences, member).sum())
    return total / bootstrap.resamples


def _bin(number: int, count: Tensor, claimed: Tensor, found: Tensor) -> Bin:
    pairs = int(count)
    return Bin(
        low=_edge(number),
        high=_edge(number + 1),
        pairs=pairs,
        confidence=float(claimed) / pairs if pairs else None,
        accuracy=float(found) / pairs if pairs else None,
    )
