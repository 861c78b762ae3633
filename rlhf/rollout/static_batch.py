"""A batch whose tensors stay where they are, and the step of decoding that works on them alone.

The step asks nothing of the device and makes no shape that depends on a value, so that a GPU can capture it
(`rlhf.rollout.graphs`). Which rows take part and how many columns are read is fixed for each captured step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.batch import PromptBatch
from rlhf.models.actor import Actor
from rlhf.models.decode_cache import prefill, stepped
from rlhf.models.static_cache import StaticCache
from rlhf.rollout.decoding import Decoding
from rlhf.rollout.responses import Responses, Stops


@dataclass(kw_only=True, slots=True)
class StaticBatch:
    """R rows that are decoded together, T tokens of a response at most."""

    cache: StaticCache
    tokens: Tensor
    """(R,) int64 last token of each row."""
    alive: Tensor
    """(R,) bool; a step changes nothing of the other rows."""
    row: Tensor
    """(R,) int64, where a row's noise, limit and response stand: no two rows at the same place."""
    time: Tensor
    """(1,) int64 number of the token that is drawn next; without a dimension, indexing would read it."""
    noise: Tensor
    """(R, T) float64."""
    limits: Tensor
    """(R,) int64 tokens that a response keeps; one more than was asked for until a stop text is found."""
    ends: Tensor
    """(V,) bool, the tokens that end a response: a set of them would have to be sorted in each step."""
    out: Responses
    """(R, T)."""

    @classmethod
    def of(cls, actor: Actor, *, rows: int, columns: int, length: int) -> StaticBatch:
        """Room for so many rows, with ``columns`` tokens each of which ``length`` are the response's."""
        cache = StaticCache.of(actor.model, rows, columns)
        whole = cache.lengths
        return cls(
            cache=cache,
            tokens=torch.zeros_like(whole),
            alive=torch.zeros_like(whole, dtype=torch.bool),
            row=torch.arange(rows, device=whole.device),
            time=whole.new_zeros(1),
            noise=torch.zeros(rows, length, dtype=torch.float64, device=whole.device),
            limits=torch.zeros_like(whole),
            ends=torch.zeros(actor.vocabulary, dtype=torch.bool, device=whole.device),
            out=Responses.empty(whole, rows, length, 0),
        )

    def holds(self, rows: int, columns: int, length: int) -> bool:
        """Whether there is room for so many rows, columns, and tokens of a response."""
        return rows <= len(self.row) and columns <= self.cache.columns and length <= self.noise.shape[1]

    def begin(self, prompts: PromptBatch, noise: Tensor, stops: Stops, out: Responses) -> None:
        """Take the rows that are to be decoded next: as many as there are prompts, the others are not alive.

        Args:
            prompts: (n, P).
            noise: (n, T).
            stops: what ends a response.
            out: (n, T) empty responses.
        """
        rows, length = noise.shape
        self.alive.copy_(self.row.copy_(torch.arange(len(self.row), device=noise.device)) < rows)
        self.tokens.zero_()
        self.time.zero_()
        self.noise[:rows, :length] = noise
        self.limits.fill_(length + 1)
        known = stops.ends[stops.ends < len(self.ends)]  # an end may lie outside the vocabulary
        self.ends.zero_().index_fill_(0, known, value=True)
        self.cache.lengths.zero_()[:rows] = prompts.mask.sum(1)
        for name in ("tokens", "logprobs", "mask"):
            getattr(self.out, name)[:rows, :length] = getattr(out, name)

    def start(self, actor: Actor, prompts: PromptBatch, decoding: Decoding) -> None:
        """Run the prompts and draw the first token of each row."""
        cache = self.cache.view(len(prompts), self.cache.columns)
        self.choose(actor, decoding, prefill(actor.model, prompts.tokens, prompts.mask, cache))

    def step(self, actor: Actor, decoding: Decoding, rows: int, reach: int) -> None:
        """Run the last token of each of the first ``rows`` rows, and draw the next.

        Args:
            actor: in eval mode, its model inside `rlhf.models.decode_cache.our_attention`.
            decoding: how a token is chosen.
            rows: all that are alive stand among them.
            reach: columns that are read: more than any of them that is alive has tokens.
        """
        states = stepped(actor.model, self.tokens[:rows], self.cache.view(rows, reach))
        self.cache.lengths[:rows].add_(self.alive[:rows])
        self.choose(actor, decoding, states)

    def choose(self, actor: Actor, decoding: Decoding, states: Tensor) -> None:
        """Draw the next token of the first n rows from their hidden states (n, H)."""
        rows = len(states)
        row, alive = self.row[:rows], self.alive[:rows]
        drawn = decoding.draw(actor.head.logits(states), self.noise[row, self.time])
        self.out.put(self.time, row, drawn, alive)
        self.tokens[:rows].copy_(torch.where(alive, drawn.tokens, self.tokens[:rows]))
        self.time.add_(1)
        alive.logical_and_(~self.ends[drawn.tokens] & (self.time < self.limits[row]))

    def compact(self, rows: int, fewer: int) -> None:
        """Move what is alive of the first ``rows`` rows into the first ``fewer``, which have room for it."""
        order = self.alive[:rows].long().argsort(descending=True, stable=True)[:fewer]
        self.cache.move(order)
        for part in (self.tokens, self.alive, self.row):
            part[:fewer] = part[order]

    def finish(self, out: Responses, rows: int) -> None:
        """Hand out n responses, ``rows`` of which are still there, without what follows a stop text."""
        count, length = out.tokens.shape
        ended = torch.ones_like(self.alive).index_copy_(0, self.row[:rows], ~self.alive[:rows])[:count]
        limits = self.limits[:count]
        kept = self.out.mask[:count, :length] & (self.time.new_ones(length).cumsum(0) <= limits[:, None])
        out.tokens.copy_(torch.where(kept, self.out.tokens[:count, :length], out.tokens))
        out.logprobs.copy_(torch.where(kept, self.out.logprobs[:count, :length], 0.0))
        out.mask.copy_(kept)
        out.ended.copy_(ended | (limits <= length))
