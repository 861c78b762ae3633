"""A policy and its reference as a reward: what DPO trained without saying so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf.batch import Rollout, SequenceBatch
from rlhf.rewards.reward import Columns, Texts
from rlhf.rewards.texts import Decoder


@dataclass(kw_only=True, slots=True)
class ImplicitReward:
    """r̂ = β Σₜ log π(yₜ)/π_ref(yₜ) over the response's tokens, its end token included (numerics D52)."""

    policy: Callable[..., Any]
    """The tuned policy: `rlhf.models.actor.Actor.forward`."""
    reference: Callable[..., Any]
    """Where its tuning began."""
    beta: float
    """Units of the score for a nat."""
    micro_rows: int
    """Rows of one forward on this rank."""

    @torch.no_grad()
    def __call__(self, rollout: Rollout, texts: Texts) -> Tensor:
        """(B,) float32."""
        return self._scores(
            rollout.tokens, rollout.attention_mask, rollout.mask, first=rollout.prompt_mask.shape[1]
        )

    @torch.no_grad()
    def sequences(self, batch: SequenceBatch, decoder: Decoder, columns: Columns | None = None) -> Tensor:
        """(B,) float32."""
        return self._scores(batch.tokens, batch.attention_mask, batch.mask[:, 1:], first=1)

    def _scores(self, tokens: Tensor, attention_mask: Tensor, wanted: Tensor, *, first: int) -> Tensor:
        found = []
        for rows in torch.arange(len(tokens), device=tokens.device).split(self.micro_rows):
            inputs = tokens[rows], attention_mask[rows], first
            logprobs, ref_logprobs = (
                model(*inputs, wanted=wanted[rows]).logprobs for model in (self.policy, self.reference)
            )
            found.append(self.beta * (logprobs.double() - ref_logprobs.double()).sum(1))
        return torch.cat(found).float()
