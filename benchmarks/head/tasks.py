"""What a contender of the head is asked for: forward, forward and backward, or a loss and its gradients.

A contender is a function of a problem; what a task wants of it is the same for ours and for the peers'.
Needs torch only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.head.problem import HeadProblem, sampled

Outputs = dict[str, Tensor]
TokenFunction = Callable[[HeadProblem, Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(problem, hidden, weight) → log-probs (M,) and entropies (M,) or None."""
LossFunction = Callable[[HeadProblem, Tensor, Tensor], Tensor]
"""(problem, hidden, weight) → the mean clipped surrogate over all rows."""

CLIP = 0.5
"""Wide, so that rounding moves no ratio across it: the gate compares gradients."""


@torch.no_grad()
def forward(function: TokenFunction, problem: HeadProblem) -> Outputs:
    """Log-probs, and entropies where there are any."""
    logprobs, entropies = function(problem, problem.hidden, problem.weight)
    return _named(logprobs=logprobs, entropies=entropies)


def backward(function: TokenFunction, problem: HeadProblem, *, entropy_gradient: bool) -> Outputs:
    """The same, and the gradients of hidden states and weight for the problem's upstream gradients."""
    hidden, weight = _leaves(problem)
    logprobs, entropies = function(problem, hidden, weight)
    heads, upstream = [logprobs], [problem.upstream]
    if entropy_gradient:
        assert entropies is not None
        heads.append(entropies)
        upstream.append(problem.upstream_entropy)
    grown = [g.to(head.dtype) for g, head in zip(upstream, heads, strict=True)]
    d_hidden, d_weight = torch.autograd.grad(heads, [hidden, weight], grown)
    return _named(logprobs=logprobs, entropies=entropies, hidden=d_hidden, weight=d_weight)


def loss(function: LossFunction, problem: HeadProblem) -> Outputs:
    """The loss and its gradients."""
    hidden, weight = _leaves(problem)
    value = function(problem, hidden, weight)
    d_hidden, d_weight = torch.autograd.grad(value, [hidden, weight])
    return _named(loss=value.reshape(1), hidden=d_hidden, weight=d_weight)


def surrogate(problem: HeadProblem, logprobs: Tensor) -> Tensor:
    """(M,) clipped surrogate of each row over the number of rows (Schulman et al. 2017, eq. 7)."""
    ratio = (logprobs - problem.old_logprobs).exp()
    clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
    advantages = problem.advantages
    return -torch.minimum(ratio * advantages, clipped * advantages) / len(logprobs)


def compared(outputs: Outputs) -> Outputs:
    """What goes to the accuracy gate: all numbers of rows, and sampled rows of the gradients."""
    return {
        name: part[sampled(len(part)).to(part.device)].cpu() if name in ("hidden", "weight") else part.cpu()
        for name, part in outputs.items()
    }


def _leaves(problem: HeadProblem) -> tuple[Tensor, Tensor]:
    return problem.hidden.detach().requires_grad_(), problem.weight.detach().requires_grad_()


def _named(**parts: Tensor | None) -> Outputs:
    return {name: part.detach() for name, part in parts.items() if part is not None}
