"""The decode loop over caches made once: prompts shared by their samples, rows that ended leave the batch.

A row's tokens do not depend on what else is in the batch: its cache has no padding, its noise is its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.batch import PromptBatch
from rlhf.models.actor import Actor
from rlhf.models.decode_cache import advanced, prefilled
from rlhf.rollout.decoding import Decoding
from rlhf.rollout.memory import KEPT
from rlhf.rollout.responses import Responses, Steps, Stops


def decode_loop(
    actor: Actor,
    prompts: PromptBatch,
    noise: Tensor,
    out: Responses,
    *,
    decoding: Decoding,
    stops: Stops,
) -> None:
    """Fill ``out`` with a response to each prompt.

    Args:
        actor: in eval mode, its model inside `rlhf.models.decode_cache.our_attention`.
        prompts: left-padded; equal ones that follow each other are run once.
        noise: (B, T) float64, decides each token.
        out: B rows of T tokens.
        decoding: how a token is chosen.
        stops: what ends a response.
    """
    T, head = noise.shape[1], actor.head
    states, cache = prefilled(actor.model, prompts.tokens, prompts.mask, room=T)
    noise = noise.t().contiguous()  # (T, B): the numbers of a step side by side
    rows = torch.arange(len(out), device=noise.device)  # of ``out`` that are still in the batch
    alive, steps = torch.ones_like(out.ended), Steps(out)
    look = patience(noise.device)
    for t in range(T):
        drawn = decoding.draw(head.step_logits(states), noise[t])
        steps.add(drawn, alive)
        if stops.strings is not None:  # they read the responses
            steps.write(rows)
        alive = alive & ~stops(drawn.tokens, rows, t, out, alive)
        if t + 1 == T:
            break
        tokens = drawn.tokens
        if (t + 1) % look == 0:
            live = int(alive.sum())
            if live == 0:
                break
            if live <= KEPT * len(rows):
                steps.write(rows)
                out.ended[rows] = ~alive
                still = alive.nonzero().squeeze(1)
                rows, alive, tokens, noise = rows[still], alive[still], tokens[still], noise[:, still]
                cache.keep(still)
        states = advanced(actor.model, tokens, cache)  # rows that ended run on, unread
    steps.write(rows)
    out.ended[rows] = ~alive


def patience(device: torch.device) -> int:
    """Steps between two looks at which rows are alive: a look makes the host wait for an accelerator."""
    return 1 if device.type == "cpu" else 8
