"""The slow, obvious decode loop over rows with left padding: the oracle of the other one.

It also serves models whose attention ours cannot replace (`rlhf.models.decode_cache.decodes`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.batch import PromptBatch, position_ids
from rlhf.models.actor import Actor
from rlhf.rollout.decoding import Decoding
from rlhf.rollout.responses import Responses, Stops


def padded_loop(
    actor: Actor, prompts: PromptBatch, noise: Tensor, out: Responses, *, decoding: Decoding, stops: Stops
) -> None:
    """Fill ``out`` with a response to each prompt; ``noise`` (B, T) decides each token."""
    T = noise.shape[1]
    alive = torch.ones_like(out.ended)
    every = torch.arange(len(alive), device=alive.device)
    seen = torch.cat([prompts.mask, torch.ones_like(out.mask)], dim=1)  # rows that ended run on, unread
    position = prompts.mask.sum(1, keepdim=True)  # (B, 1) of the next token
    prompt = prompts.tokens.masked_fill(~prompts.mask, 0)
    logits, cache = actor.next_logits(prompt, prompts.mask, position_ids(prompts.mask))
    for t in range(T):
        drawn = decoding.draw(logits, noise[:, t])
        out.put(t, every, drawn, alive)
        alive = alive & ~stops(drawn.tokens, every, t, out, alive)
        if t + 1 == T or not alive.any():
            break
        columns = seen[:, : prompts.mask.shape[1] + t + 1]
        logits, cache = actor.next_logits(drawn.tokens[:, None], columns, position + t, cache)
    out.ended.copy_(~alive)
