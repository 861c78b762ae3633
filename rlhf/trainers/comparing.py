"""A policy's forward pass beside a frozen one's, for losses over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor

from rlhf.algorithms.divergences import Divergence
from rlhf.distributed.engine_config import Inference
from rlhf.distributed.gathering import gathered
from rlhf.models.actor import Actor
from rlhf.models.comparison import Against, Compared

Policy = Callable[..., Any]
"""An actor or an engine around one: `rlhf.models.actor.Actor.forward`."""


def compared(
    policy: Policy,
    other: Inference,
    inputs: tuple[Tensor, Tensor, int, float],
    *,
    divergence: Divergence,
    wanted: Tensor,
    weights: Tensor,
    target_weights: Tensor | None = None,
) -> Compared:
    """Σ weights·D − target_weights·log π of the tokens wanted, with gradient, and what both say of them.

    The frozen policy's head is whole for as long as the other one runs: every rank calls this equally often.

    Args:
        policy: the one that learns.
        other: around the actor that it is held against.
        inputs: tokens (B, L), attention mask (B, L), first column scored, temperature of both.
        divergence: D.
        wanted: (B, L − first) bool.
        weights: (B, L − first).
        target_weights: (B, L − first); None is 0.
    """
    states = other(*inputs, wanted=wanted, states=True)
    head = cast(Actor, other.module).head
    with gathered(*head.parameters()):
        against = Against(
            other=head.over(states), divergence=divergence, weights=weights, target_weights=target_weights
        )
        found: Compared = policy(*inputs, wanted=wanted, against=against)
    return found
