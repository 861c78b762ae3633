"""The decode loop of two policies that write responses together: both read every token, either draws it.

Slow and obvious, over rows with left padding, as `rlhf.rollout.padded_loop`: rounds of a mixture are few.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf.batch import PromptBatch, position_ids
from rlhf.kernels.drawing import Drawn
from rlhf.models.actor import Actor
from rlhf.rollout.decoding import Decoding
from rlhf.rollout.responses import Responses, Stops


def mixed_loop(
    actors: Sequence[Actor],
    prompts: PromptBatch,
    noise: Tensor,
    turns: Tensor,
    out: Responses,
    *,
    decoding: Decoding,
    stops: Stops,
) -> None:
    """Fill ``out`` with a response to each prompt.

    Args:
        actors: two, in eval mode.
        prompts: left-padded.
        noise: (B, T) float64, decides each token.
        turns: (B, T) bool, True where the second actor draws.
        out: B rows of T tokens.
        decoding: how a token is chosen.
        stops: what ends a response.
    """
    T = noise.shape[1]
    alive = torch.ones_like(out.ended)
    every = torch.arange(len(alive), device=alive.device)
    seen = torch.cat([prompts.mask, torch.ones_like(out.mask)], dim=1)  # rows that ended run on, unread
    position = prompts.mask.sum(1, keepdim=True)  # (B, 1) of the next token
    prompt = prompts.tokens.masked_fill(~prompts.mask, 0)
    states = [actor.next_logits(prompt, prompts.mask, position_ids(prompts.mask)) for actor in actors]
    for t in range(T):
        own, others = (decoding.draw(logits, noise[:, t]) for logits, _ in states)
        drawn = Drawn(*(torch.where(turns[:, t], b, a) for a, b in zip(own, others, strict=True)))
        out.put(t, every, drawn, alive)
        alive = alive & ~stops(drawn.tokens, every, t, out, alive)
        if t + 1 == T or not alive.any():
            break
        columns = seen[:, : prompts.mask.shape[1] + t + 1]
        states = [
            actor.next_logits(drawn.tokens[:, None], columns, position + t, cache)
            for actor, (_, cache) in zip(actors, states, strict=True)
        ]
    out.ended.copy_(~alive)
