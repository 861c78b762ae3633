"""Divergences of a student's next-token distribution p from a teacher's q, over the whole vocabulary.

Each comes with its gradient with respect to the student's logits. For any divergence that is

    ∂D/∂z_j = p_j·(∂D/∂p_j − E_p[∂D/∂p])

Where p = q, value and gradient are exactly 0, not only up to rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Diverged(NamedTuple):
    """How far two distributions are apart, and where to move the first."""

    values: Tensor
    """(…) nats."""
    gradient: Tensor
    """(…, V) of the value with respect to the student's logits; the teacher gets none."""


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) = Σ_v p_v·(log p_v − log q_v).

    Args:
        log_p: (…, V) finite log-probs.
        log_q: (…, V) finite log-probs.

    Returns:
        (…) nats.
    """
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def forward_kl(student: Tensor, teacher: Tensor) -> Diverged:
    """KL(q‖p): the student must cover all that the teacher does. Gradient p − q.

    Up to the teacher's entropy it is the expected −log p of a token drawn from the teacher.

    Args:
        student: (…, V) log p, finite.
        teacher: (…, V) log q, finite.
    """
    return Diverged(kl(teacher, student), student.exp() - teacher.exp())


def reverse_kl(student: Tensor, teacher: Tensor) -> Diverged:
    """KL(p‖q): the student must not do what the teacher does not. Gradient p·(log p/q − KL).

    Args:
        student: (…, V) log p, finite.
        teacher: (…, V) log q, finite.
    """
    p, ratio = student.exp(), student - teacher
    values = (p * ratio).sum(-1)
    return Diverged(values, p * (ratio - values.unsqueeze(-1)))


def jensen_shannon(student: Tensor, teacher: Tensor, *, beta: float) -> Diverged:
    """Generalised Jensen–Shannon divergence (Agarwal et al. 2023, eq. 1), with m = β·q + (1 − β)·p.

        D_β = β·KL(q‖m) + (1 − β)·KL(p‖m)         ∂D/∂z = (1 − β)·p·(log p/m − KL(p‖m))

    It is bounded: by log 2 at β = ½. D_β/β tends to KL(q‖p) as β → 0, D_β/(1 − β) to KL(p‖q) as β → 1.

    Args:
        student: (…, V) log p, finite.
        teacher: (…, V) log q, finite.
        beta: β in (0, 1), the teacher's share of the mixture.
    """
    p, gap = student.exp(), teacher - student
    less = torch.expm1(-gap.abs())  # in [−1, 0]: nothing overflows
    mixed = gap.clamp(min=0) + torch.log1p(torch.where(gap > 0, (1 - beta) * less, beta * less))  # log m/p
    to_student = -(p * mixed).sum(-1)  # KL(p‖m)
    to_teacher = (teacher.exp() * (gap - mixed)).sum(-1)  # KL(q‖m)
    values = beta * to_teacher + (1 - beta) * to_student
    return Diverged(values, (beta - 1) * p * (mixed + to_student.unsqueeze(-1)))
