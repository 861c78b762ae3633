"""What trainers and evaluation need of a sampler, and what they insist on: another engine can stand in."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from rlhf.batch import PromptBatch, Rollout
from rlhf.models.actor import Actor

ROUNDING = 1e-5
"""Nats by which an engine's rounding may lift a log-prob above 0."""


class ResponseSampler(Protocol):
    """Writes responses with an actor's present weights. `rlhf.rollout.sampler.Sampler` is one."""

    @property
    def max_new_tokens(self) -> int:
        """T, tokens of a response at most, the end token included."""

    @property
    def temperature(self) -> float:
        """The one that is sampled at, at which responses are scored (numerics D10).

        Raises:
            ValueError: it does not sample the exact softmax(logits / temperature), which training needs
                (numerics D13).
        """

    def sample(self, actor: Actor, prompts: PromptBatch, noise: Tensor) -> Rollout:
        """One response to each row, in the order of the rows.

        Args:
            actor: a plain (gathered) policy, to be sampled as it is now and left in the mode it came in.
            prompts: left-padded, on the actor's device.
            noise: (B, max_new_tokens) float64, uniform in [0, 1). Whoever lets entry (i, t) decide token t of
                row i, draws the same response in any batch and on any number of ranks. An engine with random
                numbers of its own takes its seeds from it.

        Returns:
            Responses with their end token, and the log-prob of each token as it was drawn, at the
            temperature: the trainer scores them again, and its ledger says how far the two are apart.
        """

    def greedy(self) -> ResponseSampler:
        """The same, with the most likely token everywhere."""


class MixingSampler(ResponseSampler, Protocol):
    """One that can also let two policies write together, as distillation asks for."""

    def sample_from_both(
        self, first: Actor, second: Actor, prompts: PromptBatch, noise: Tensor, turns: Tensor
    ) -> Rollout:
        """As :meth:`sample`; ``turns`` (B, max_new_tokens) bool is True where the second policy draws."""


def sampled(sampler: ResponseSampler, actor: Actor, prompts: PromptBatch, noise: Tensor) -> Rollout:
    """The sampler's responses, if they are responses to these prompts.

    Raises:
        ValueError: they are not, or their log-probs cannot be any. NaN is left to the trainer, which names
            the row.
    """
    rollout = sampler.sample(actor, prompts, noise)
    fault = _fault(rollout, prompts, sampler.max_new_tokens, actor.vocabulary)
    if fault is not None:
        raise ValueError(f"{type(sampler).__name__}.sample: {fault}")
    return rollout


def _fault(rollout: Rollout, prompts: PromptBatch, most: int, vocabulary: int) -> str | None:
    """What is wrong with a rollout."""
    rows, width, length = *prompts.tokens.shape, rollout.mask.shape[1]
    found = tuple(rollout.tokens.shape)
    if found != (rows, width + length):
        return (
            f"tokens have shape {found}, expected {rows} rows of {width} prompt columns and {length} others"
        )
    if not 1 <= length <= most:
        return f"responses have {length} columns, expected 1 to {most} (max_new_tokens)"
    prompt = torch.where(prompts.mask, prompts.tokens, 0) != torch.where(
        prompts.mask, rollout.tokens[:, :width], 0
    )
    checks = {
        "has another prompt than was asked for": prompt.any(1) | (rollout.prompt_mask != prompts.mask).any(1),
        "has another index or group than its prompt": (rollout.index != prompts.index)
        | (rollout.group != prompts.group),
        "has no token": ~rollout.mask[:, 0],
        f"holds a token outside the vocabulary of {vocabulary}": _any(
            (rollout.responses < 0) | (rollout.responses >= vocabulary), rollout.mask
        ),
        "has a log-prob above 0": _any(rollout.sampler_logprobs > ROUNDING, rollout.mask),
    }
    wrong = torch.stack(list(checks.values()))  # (checks, B); read at once: a GPU is waited for one time
    found_at = wrong.nonzero().tolist()
    if not found_at:
        return None
    check, row = found_at[0]
    return f"row {row} {list(checks)[check]}"


def _any(values: Tensor, mask: Tensor) -> Tensor:
    """(B,) whether one of the (B, T) values is True where the mask is."""
    return (values & mask).any(1)
