"""The decode loop: slow, obvious, and the oracle of every faster one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf.batch import PromptBatch, Rollout, position_ids
from rlhf.models.actor import Actor
from rlhf.rollout.decoding import Decoding, Sampling


@dataclass(kw_only=True, slots=True)
class Sampler:
    """Samples responses with the modules that also score them, over a key-value cache."""

    decoding: Decoding
    """How a token is chosen, and how many at most."""
    end_ids: Sequence[int]
    """Tokens that end a response, one suffices."""
    pad_id: int
    """Fills a response after its end; may lie outside the vocabulary."""

    def __post_init__(self) -> None:
        if not self.end_ids or self.pad_id in self.end_ids:
            ends = list(self.end_ids)
            raise ValueError(
                f"Sampler.end_ids must hold an end token and not PAD ({self.pad_id}), got {ends}"
            )

    @property
    def max_new_tokens(self) -> int:
        """Tokens of a response at most, and columns of noise needed."""
        return self.decoding.max_new_tokens

    @property
    def temperature(self) -> float:
        """The temperature at which these responses are to be scored.

        Raises:
            ValueError: the decoding is greedy, which no policy gradient can learn from (numerics D10).
        """
        if not isinstance(self.decoding, Sampling):
            raise ValueError(f"{type(self.decoding).__name__} has no temperature; training needs Sampling")
        return self.decoding.temperature

    @torch.no_grad()
    def sample(self, actor: Actor, prompts: PromptBatch, noise: Tensor) -> Rollout:
        """One response to each row of ``prompts``.

        Args:
            actor: a plain (gathered) policy; left in the mode it came in.
            prompts: left-padded, on the actor's device.
            noise: (B, max_new_tokens) float64, uniform in [0, 1); entry (i, t) alone decides token t of
                row i, so that no row depends on which others are in the batch or when they end.

        Returns:
            Responses with their end token, PAD after it; T is the longest response of the batch.

        Raises:
            ValueError: noise of another shape, a prompt without tokens, or no room in the context.
        """
        self._check(actor, prompts, noise)
        with _evaluating(actor):
            tokens, logprobs, mask, ended = self._decode(actor, prompts, noise)
        return Rollout(
            tokens=torch.cat([prompts.tokens, tokens], dim=1),
            prompt_mask=prompts.mask,
            mask=mask,
            ended=ended,
            sampler_logprobs=logprobs,
            index=prompts.index,
            group=prompts.group,
        )

    def _decode(
        self, actor: Actor, prompts: PromptBatch, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        B, P = prompts.tokens.shape
        T = self.max_new_tokens
        tokens = prompts.tokens.new_full((B, T), self.pad_id)
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        logprobs = torch.zeros_like(tokens, dtype=torch.float32)
        alive = torch.ones_like(mask[:, 0])
        seen = torch.cat(
            [prompts.mask, torch.ones_like(mask)], dim=1
        )  # (B, P+T); rows that ended run on, unread
        ends = torch.as_tensor(list(self.end_ids), device=tokens.device)
        position = prompts.mask.sum(1, keepdim=True)  # (B, 1) of the next token
        prompt = prompts.tokens.masked_fill(~prompts.mask, 0)
        logits, cache = actor.next_logits(prompt, prompts.mask, position_ids(prompts.mask))
        for t in range(T):
            drawn, drawn_logprobs = self.decoding.draw(logits, noise[:, t])
            tokens[:, t] = torch.where(alive, drawn, self.pad_id)
            logprobs[:, t] = torch.where(alive, drawn_logprobs, 0.0)
            mask[:, t] = alive
            alive = alive & ~torch.isin(drawn, ends)
            if t + 1 == T or not alive.any():
                break
            logits, cache = actor.next_logits(drawn[:, None], seen[:, : P + t + 1], position + t, cache)
        length = t + 1
        return tokens[:, :length], logprobs[:, :length], mask[:, :length], ~alive

    def _check(self, actor: Actor, prompts: PromptBatch, noise: Tensor) -> None:
        expected = (len(prompts), self.max_new_tokens)
        if tuple(noise.shape) != expected:
            raise ValueError(f"Sampler: noise has shape {tuple(noise.shape)}, expected {expected}")
        if not prompts.mask[:, -1].all():
            raise ValueError(
                "Sampler: every prompt needs a token in its last column (left padding, not empty)"
            )
        longest = int(prompts.mask.sum(1).max())
        if actor.context is not None and longest + self.max_new_tokens > actor.context:
            raise ValueError(
                f"Sampler: a prompt of {longest} and {self.max_new_tokens} new tokens exceed the context of "
                f"{actor.context} positions"
            )


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside the block: a checkpointing model in training mode keeps no cache."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
