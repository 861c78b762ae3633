"""What the tests of the loops share: rows that leave each other's company, and ways to sample them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from rlhf.batch import PromptBatch, Rollout
from rlhf.models.actor import Actor
from rlhf.rollout.decoding import Decoding, Greedy, Sampling, Truncated
from rlhf.rollout.sampler import Sampler

PAD, T = 999, 14
Build, Prompts, Noise = Callable[..., Actor], Callable[..., PromptBatch], Callable[..., torch.Tensor]
ROWS = [[3, 4]] * 4 + [[5, 6, 7, 8, 9]] * 3 + [[10, 3, 2]] + [[3, 4]] * 3 + [[2]]
B = len(ROWS)
DECODINGS: dict[str, Decoding] = {
    "sampling": Sampling(max_new_tokens=T, temperature=1.3),
    "greedy": Greedy(max_new_tokens=T),
    "truncated": Truncated(max_new_tokens=T, top_k=6, top_p=0.9, min_p=0.02),
}


def sampling(decoding: Decoding | None = None, **changes: Any) -> Sampler:
    """Of three end ids, one of which no model has."""
    ours = Sampler(decoding=decoding or DECODINGS["sampling"], end_ids=(1, 7, 998), pad_id=PAD)
    return replace(ours, **changes)


def same(found: Rollout, wanted: Rollout) -> None:
    """All of it: tokens to the last one, log-probs but for rounding."""
    for name in ("tokens", "prompt_mask", "mask", "ended", "index", "group"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    torch.testing.assert_close(found.sampler_logprobs, wanted.sampler_logprobs, rtol=0, atol=1e-5)
