"""From prompts to responses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from rlhf.batch import PromptBatch, Rollout
from rlhf.models.actor import Actor
from rlhf.models.decode_cache import decodes, our_attention
from rlhf.models.static_cache import repeats
from rlhf.rollout.decode_loop import decode_loop
from rlhf.rollout.decoding import Decoding, Greedy, Sampling
from rlhf.rollout.graph_loop import graph_loop
from rlhf.rollout.graphs import Graphs
from rlhf.rollout.memory import Plan
from rlhf.rollout.mixed_loop import mixed_loop
from rlhf.rollout.padded_loop import padded_loop
from rlhf.rollout.responses import Responses, Stops, StopStrings


@dataclass(kw_only=True, slots=True)
class Sampler:
    """Samples responses with the modules that also score them."""

    decoding: Decoding
    """How a token is chosen, and how many at most."""
    end_ids: Sequence[int]
    """Tokens that end a response, one suffices."""
    pad_id: int
    """Fills a response after its end; may lie outside the vocabulary."""
    stop: StopStrings | None = None
    """Texts that end a response too."""
    memory: int | None = None
    """Bytes that decoding may take (`rlhf.rollout.memory`); more rows are decoded part by part. None: any."""
    graphs: Graphs | None = None
    """What a GPU has captured, kept from rollout to rollout; None launches every step from Python."""

    def __post_init__(self) -> None:
        if not self.end_ids or self.pad_id in self.end_ids:
            ends = list(self.end_ids)
            raise ValueError(
                f"Sampler.end_ids must hold an end token and not PAD ({self.pad_id}), got {ends}"
            )
        if self.memory is not None and self.memory < 1:
            raise ValueError(f"Sampler.memory must be positive or None, got {self.memory}")

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

    def greedy(self) -> Sampler:
        """The same, with the most likely token everywhere."""
        return replace(self, decoding=Greedy(max_new_tokens=self.max_new_tokens))

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
        out = Responses.empty(prompts.tokens, len(prompts), self.max_new_tokens, self.pad_id)
        with _evaluating(actor):
            self._fill(actor, prompts, noise, out)
        return self._rollout(prompts, out)

    @torch.no_grad()
    def sample_from_both(
        self, first: Actor, second: Actor, prompts: PromptBatch, noise: Tensor, turns: Tensor
    ) -> Rollout:
        """One response to each row of ``prompts``, its tokens drawn by either of two policies.

        Args:
            first: as ``actor`` of :meth:`sample`.
            second: another one with the same tokens.
            prompts: see :meth:`sample`.
            noise: (B, max_new_tokens); decides each token, whoever draws it.
            turns: (B, max_new_tokens) bool, True where the second policy draws.

        Returns:
            As :meth:`sample`; each token's log-prob is that of the policy that drew it.
        """
        actors = (first, second)
        for actor in actors:
            self._check(actor, prompts, noise)
        out = Responses.empty(prompts.tokens, len(prompts), self.max_new_tokens, self.pad_id)
        with _evaluating(first), _evaluating(second):
            most = min(self._half(actor, prompts) for actor in actors)
            for rows in torch.arange(len(prompts), device=noise.device).split(most):
                part = slice(int(rows[0]), int(rows[-1]) + 1)
                mixed_loop(
                    actors,
                    prompts.rows(rows),
                    noise[part],
                    turns[part],
                    out.slice(part),
                    decoding=self.decoding,
                    stops=self._stops(noise.device),
                )
        return self._rollout(prompts, out)

    def _half(self, actor: Actor, prompts: PromptBatch) -> int:
        """Rows whose caches fill half of the memory."""
        if self.memory is None or not decodes(actor.model):
            return len(prompts)
        with our_attention(actor.model):
            return self.plan(actor, prompts).rows_within(self.memory // 2)

    def _rollout(self, prompts: PromptBatch, out: Responses) -> Rollout:
        length = int(out.mask.sum(1).max())
        return Rollout(
            tokens=torch.cat([prompts.tokens, out.tokens[:, :length]], dim=1),
            prompt_mask=prompts.mask,
            mask=out.mask[:, :length],
            ended=out.ended,
            sampler_logprobs=out.logprobs[:, :length],
            index=prompts.index,
            group=prompts.group,
        )

    def _fill(self, actor: Actor, prompts: PromptBatch, noise: Tensor, out: Responses) -> None:
        """Decode all rows, as many at a time as the memory allows."""
        stops = self._stops(noise.device)
        if not decodes(actor.model):
            padded_loop(actor, prompts, noise, out, decoding=self.decoding, stops=stops)
            return
        with our_attention(actor.model):
            loop, most = self._loop(actor, prompts)
            for first in range(0, len(noise), most or len(noise)):
                part = slice(first, first + (most or len(noise)))
                own = prompts.rows(torch.arange(len(noise), device=noise.device)[part])
                loop(actor, own, noise[part], out.slice(part), decoding=self.decoding, stops=stops)

    def _loop(self, actor: Actor, prompts: PromptBatch) -> tuple[Callable[..., None], int | None]:
        """How rows are decoded, and how many at a time; None for all."""
        most = None if self.memory is None else self.plan(actor, prompts).rows_within(self.memory)
        graphs = self._graphs(actor)
        if graphs is None:
            return decode_loop, most
        columns = graphs.columns(actor, self._columns(prompts))
        return partial(graph_loop, graphs=graphs, columns=columns, most=most), most

    def plan(self, actor: Actor, prompts: PromptBatch) -> Plan:
        """What it takes to decode rows of ``prompts``; the actor is in eval mode, inside `our_attention`."""
        columns, graphs = self._columns(prompts), self._graphs(actor)
        if graphs is not None:
            columns = graphs.columns(actor, columns)
        return Plan.of(actor, prompts, self.decoding, columns, captured=graphs is not None)

    def _graphs(self, actor: Actor) -> Graphs | None:
        """Where the actor's steps are kept, if they can be captured."""
        return self.graphs if self.graphs is not None and repeats(actor.model) else None

    def _columns(self, prompts: PromptBatch) -> int:
        """Tokens of the longest row at most, prompt and response."""
        return int(prompts.mask.sum(1).max()) + self.max_new_tokens

    def _stops(self, device: torch.device) -> Stops:
        return Stops(ends=torch.as_tensor(list(self.end_ids), device=device), strings=self.stop)

    def _check(self, actor: Actor, prompts: PromptBatch, noise: Tensor) -> None:
        expected = (len(prompts), self.max_new_tokens)
        if tuple(noise.shape) != expected:
            raise ValueError(f"Sampler: noise has shape {tuple(noise.shape)}, expected {expected}")
        if not prompts.mask[:, -1].all():
            raise ValueError(
                "Sampler: every prompt needs a token in its last column (left padding, not empty)"
            )
        longest = self._columns(prompts) - self.max_new_tokens
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
