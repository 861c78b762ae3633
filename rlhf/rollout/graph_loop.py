"""The decode loop of a GPU: captured steps are replayed, and the host never waits for the last one.

Every few steps it looks at how the rows stood at its last look, and moves those that are alive into fewer
rows. All of it is the arithmetic of `rlhf.rollout.decode_loop`, row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf.batch import PromptBatch
from rlhf.models.actor import Actor
from rlhf.rollout.decoding import Decoding
from rlhf.rollout.graphs import Graphs
from rlhf.rollout.responses import Responses, Stops, StopStrings
from rlhf.rollout.static_batch import StaticBatch

PATIENCE = 8
"""Steps between two looks. A row that ended, or has a stop text, runs on for two of these at most."""
LEAST = 128
"""Columns that are read at least: fewer would save nothing."""


def graph_loop(
    actor: Actor,
    prompts: PromptBatch,
    noise: Tensor,
    out: Responses,
    *,
    decoding: Decoding,
    stops: Stops,
    graphs: Graphs,
    columns: int,
    most: int | None = None,
) -> None:
    """Fill ``out`` with a response to each prompt; see `rlhf.rollout.decode_loop.decode_loop`.

    Args:
        actor: in eval mode, its model inside `rlhf.models.decode_cache.our_attention`.
        prompts: left-padded; equal ones that follow each other are run once.
        noise: (B, T) float64, decides each token.
        out: B rows of T tokens, empty.
        decoding: how a token is chosen.
        stops: what ends a response.
        graphs: keeps what was captured.
        columns: tokens that a row has room for; see `Graphs.columns`.
        most: rows that there is memory for; None for any number.
    """
    rows, length = noise.shape
    longest = int(prompts.mask.sum(1).max())
    batch = graphs.batch(actor, rows=rows, columns=columns, length=length, most=most)
    batch.begin(prompts, noise, stops, out)
    batch.start(actor, prompts, decoding)
    texts = None if stops.strings is None else StopTexts(stops.strings, batch, rows, length)
    step = partial(graphs.step, actor, decoding)
    left = replayed(step, batch, Standing(1, rows, longest), length, texts)
    if texts is not None:
        texts.settle()
    batch.finish(out, left)


class Standing(NamedTuple):
    """How the rows stood before a step."""

    step: int
    live: int
    """Rows that were alive."""
    longest: int
    """Tokens in the cache of the longest of them."""


def replayed(
    step: Callable[[int, int], Callable[[], None]],
    batch: StaticBatch,
    seen: Standing,
    length: int,
    texts: StopTexts | None,
) -> int:
    """All steps after the first token. Nothing in here makes the host wait but for an earlier look.

    Args:
        step: of rows and columns, `rlhf.rollout.graphs.Graphs.step`.
        batch: every row has its first token.
        seen: before the first step.
        length: T, tokens of a response at most.
        texts: looks for stop texts.

    Returns:
        Rows that are still in the batch.
    """
    rows, look = bucket(seen.live, len(batch.row)), Look(batch)
    for t in range(1, length):
        if t % PATIENCE == 0:
            seen = look.read() or seen
            if texts is not None:
                texts.read()
            if seen.live == 0:
                break
            if bucket(seen.live, rows) < rows:
                batch.compact(rows, bucket(seen.live, rows))
                rows = bucket(seen.live, rows)
            look.take(t, rows)
            if texts is not None:
                texts.take()
        reach = bucket(max(seen.longest + t - seen.step + 1, LEAST), batch.cache.columns)
        step(rows, reach)()
    return rows


def bucket(count: int, most: int) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16 … that is not below ``count``, but ``most`` at most."""
    power = 1 << (count - 1).bit_length()
    between = power * 3 // 4
    return min(between if count <= between and power > 2 else power, most)


class HostCopy:
    """A tensor's values as they were, on the host."""

    def __init__(self, like: Tensor) -> None:
        cuda = like.device.type == "cuda"
        self._host = torch.empty(like.shape, dtype=like.dtype, pin_memory=cuda)
        self._arrived = torch.cuda.Event() if cuda else None

    def take(self, values: Tensor) -> None:
        """Ask for the present values of as many elements as there are; nothing waits."""
        self._host[: len(values)].copy_(values, non_blocking=True)
        if self._arrived is not None:
            self._arrived.record()

    def read(self, count: int) -> Tensor:
        """The first ``count`` elements that were asked for, once they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host[:count]


class Look:
    """Which rows were alive at the last look, and how long they were."""

    def __init__(self, batch: StaticBatch) -> None:
        self._batch, self._copy = batch, HostCopy(batch.cache.lengths)
        self._asked: tuple[int, int] | None = None

    def take(self, step: int, rows: int) -> None:
        """Look at the first ``rows`` rows as they stand before a step."""
        batch, self._asked = self._batch, (step, rows)
        self._copy.take(torch.where(batch.alive[:rows], batch.cache.lengths[:rows], 0))

    def read(self) -> Standing | None:
        """What the last look saw; None before the first."""
        if self._asked is None:
            return None
        step, rows = self._asked
        lengths = self._copy.read(rows)
        return Standing(step, int((lengths > 0).sum()), int(lengths.max()))


class StopTexts:
    """Looks for texts that end a response, on the host and some steps late; what follows one is dropped."""

    def __init__(self, strings: StopStrings, batch: StaticBatch, rows: int, length: int) -> None:
        self._strings, self._batch = strings, batch
        self._tokens, self._mask = HostCopy(batch.out.tokens), HostCopy(batch.out.mask)
        self._limits = torch.full((len(batch.row),), length + 1)
        if batch.limits.is_cuda:
            self._limits = self._limits.pin_memory()
        self._read, self._open, self._asked = [0] * rows, set(range(rows)), False

    def take(self) -> None:
        """Ask for the responses as far as they are drawn."""
        self._tokens.take(self._batch.out.tokens)
        self._mask.take(self._batch.out.mask)
        self._asked = True

    def read(self) -> None:
        """Search what arrived of the last time, and tell the device where responses end."""
        if not self._asked:
            return
        everything = len(self._limits)
        tokens, lengths = self._tokens.read(everything), self._mask.read(everything).sum(1).tolist()
        found = [self._ends(row, tokens[row, : lengths[row]].tolist()) for row in sorted(self._open)]
        if any(found):
            self._batch.limits.copy_(self._limits, non_blocking=True)

    def _ends(self, row: int, response: list[int]) -> bool:
        """Whether a text is found in what was not searched yet of a row."""
        for length in range(self._read[row] + 1, len(response) + 1):
            if self._strings(response[:length]):
                self._limits[row] = length
                self._open.remove(row)
                return True
        self._read[row] = len(response)
        return False

    def settle(self) -> None:
        """Search all that was drawn."""
        self.read()
        self.take()
        self.read()
