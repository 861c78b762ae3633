"""What a forward without gradients holds for a moment, beside weights and cache."""

from __future__ import annotations

from typing import Any

from rlhf.models.heads import LogprobHead


def prompt_bytes(model: Any) -> int:
    """Of one token of a prompt, in the feed-forward layer, where it is most.

    Three states of the hidden size (the sum so far, what was added to, what was normed) and the inner states:
    the gate's, the other's and their product, or what an activation function makes in passing.
    """
    config = model.config
    inner = (
        getattr(config, "intermediate_size", None)
        or getattr(config, "n_inner", None)
        or 4 * config.hidden_size
    )
    states = 3 if any("gate" in name for name, _ in model.named_parameters()) else 5
    weight = next(model.parameters())
    return int(3 * config.hidden_size + states * inner) * weight.element_size()


def logit_bytes(head: LogprobHead) -> int:
    """Of one float32 logit, while the head makes it."""
    if head.softcap is not None:
        return 12
    return 8 if head.scale != 1.0 or head.bias is not None else 4
