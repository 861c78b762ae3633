"""Keys and values of rows that are being decoded, in buffers made once, and the two forwards that use them.

Row i's tokens stand in columns 0 … lengths[i] − 1 of every buffer, without padding before or between. The
model gets no cache of transformers' own: a `DecodeCache` travels through it as a keyword to our attention
(`rlhf.models.packing`), which stores and reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rlhf.kernels.cpu_decode import decode_attention, has_attention
from rlhf.models.decode_step import decode_step
from rlhf.models.packing import KNOWN, NAME, Packed
from rlhf.models.shared_cache import SharedCache


@dataclass(kw_only=True, slots=True)
class Placement:
    """Which tokens of a packed prefill go where: each into all rows that share its prompt."""

    source: Tensor
    """(M,) int64 place among the packed tokens."""
    row: Tensor
    """(M,) int64."""
    column: Tensor
    """(M,) int64."""


@dataclass(kw_only=True, slots=True)
class DecodeCache:
    """Keys and values of B rows, up to C tokens each."""

    columns: int
    """C, tokens that a row has room for."""
    lengths: Tensor
    """(B,) int64 tokens of each row in the cache."""
    reach: int
    """Columns that are in use at most; known without asking the device."""
    placement: Placement | None = None
    """During the prefill, where its tokens go."""
    buffers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Of each layer: keys and values, (B, key heads, C, D) each."""

    @property
    def bytes(self) -> int:
        """What the buffers take."""
        return sum(part.nbytes for layer in self.buffers.values() for part in layer)

    def store(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Take a layer's (1, key heads, N, D) states of packed prompts."""
        assert self.placement is not None
        if layer not in self.buffers:
            shapes = (
                (len(self.lengths), part.shape[1], self.columns, part.shape[3]) for part in (key, value)
            )
            keys, values = (key.new_zeros(shape) for shape in shapes)
            self.buffers[layer] = keys, values
        for buffer, states in zip(self.buffers[layer], (key, value), strict=True):
            found = states[0].transpose(0, 1)[self.placement.source]  # (M, key heads, D)
            buffer.transpose(1, 2)[self.placement.row, self.placement.column] = found

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float | None,
        window: int | None,
    ) -> Tensor:
        """Store one token a row, (B, key heads, 1, D), and attend from it: (B, 1, heads, D)."""
        keys, values = self.buffers[layer]
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        if has_attention(query, keys, values):
            return decode_attention(
                query.squeeze(2),
                key.squeeze(2),
                value.squeeze(2),
                keys,
                values,
                self.lengths,
                scale=scale,
                window=window,
            ).unsqueeze(1)
        rows = torch.arange(len(keys), device=keys.device)
        keys.transpose(1, 2)[rows, self.lengths] = key.squeeze(2)
        values.transpose(1, 2)[rows, self.lengths] = value.squeeze(2)
        found = _attention(
            query, keys[:, :, : self.reach], values[:, :, : self.reach], self._seen(window), scale
        )
        return found.transpose(1, 2)

    def _seen(self, window: int | None) -> Tensor:
        """(B, 1, 1, reach) bool, what the token in column ``lengths`` attends to."""
        column, last = torch.arange(self.reach, device=self.lengths.device), self.lengths.unsqueeze(1)
        seen = column <= last
        if window is not None:
            seen &= column > last - window
        return seen[:, None, None]

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but those of ``rows`` (int64), buffer by buffer."""
        self.lengths = self.lengths[rows]
        for layer in list(self.buffers):
            keys, values = self.buffers.pop(layer)
            keys = keys.index_select(0, rows)
            values = values.index_select(0, rows)
            self.buffers[layer] = keys, values


Cache = DecodeCache | SharedCache
"""Of the rows of a decode loop: the second where the model's step is compiled."""


def _attention(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor, scale: float) -> Tensor:
    """One query a row, (B, heads, 1, D) → (B, heads, 1, D).

    Heads that share keys stand where several queries would: no key is repeated for them. On a GPU the kernel
    is named, for others refuse the mask, or choose their plan while a graph is captured.
    """
    grouped = query.reshape(*keys.shape[:2], -1, query.shape[3])  # (B, key heads, heads / key heads, D)
    kernels = (
        sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]) if query.is_cuda else nullcontext()
    )
    with kernels:
        found = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=seen, scale=scale)
    return found.reshape(*query.shape[:3], values.shape[3])


def decodes(model: Any) -> bool:
    """Whether our attention can stand in for all of a model's: else transformers' own cache has to serve."""
    config = model.config
    others = set(getattr(config, "layer_types", None) or ()) - KNOWN
    shares = getattr(config, "num_kv_shared_layers", 0) or 0
    return config._attn_implementation in ("sdpa", NAME) and not others and not shares


@contextmanager
def our_attention(model: Any) -> Iterator[None]:
    """Inside the block the model's attention is that of `rlhf.models.packing`."""
    given = model.config._attn_implementation
    if given != NAME:
        model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        if given != NAME:
            model.set_attn_implementation(given)


def prefilled(model: Any, tokens: Tensor, mask: Tensor, *, room: int) -> tuple[Tensor, Cache]:
    """Run the prompts into a cache of their own.

    Args:
        model: inside `our_attention`, in eval mode.
        tokens: (B, P) int64, left-padded.
        mask: (B, P) bool, True somewhere in every row.
        room: tokens that each row will need after its prompt.

    Returns:
        (B, H) hidden states after the final norm at each prompt's last token, and the cache.
    """
    lengths = mask.sum(1)
    longest = int(lengths.max())
    step = decode_step(model, longest + room)
    if step is None:
        cache = DecodeCache(columns=longest + room, lengths=lengths, reach=longest)
        return prefill(model, tokens, mask, cache), cache
    first = runs(tokens, mask)
    prompt = first.long().cumsum(0) - 1  # (B,) which of the different prompts
    once = DecodeCache(columns=longest, lengths=lengths[first], reach=longest)
    states = prefill(model, tokens[first], mask[first], once)[prompt]
    return states, SharedCache.after(step, once.buffers, lengths[first], prompt, room)


def prefill(model: Any, tokens: Tensor, mask: Tensor, cache: DecodeCache) -> Tensor:
    """Run the prompts into ``cache``, which knows their lengths; each run of equal ones once.

    A pass takes `pass_tokens` of them, so that what it holds does not grow with the batch.

    Returns:
        (B, H) hidden states after the final norm at each prompt's last token.
    """
    first = runs(tokens, mask)
    prompt = first.long().cumsum(0) - 1  # (B,) which of the different prompts
    tokens, mask = tokens[first], mask[first]
    most, last = pass_tokens(tokens.device), []
    for part in _parts(mask.sum(1).tolist(), most):
        packed = Packed.of(tokens[part], mask[part])
        cache.placement = _placement(prompt - part.start, mask[part].sum(1), packed)
        states = packed.states(model, decode_cache=cache)
        last.append(states[packed.place[packed.rows.bounds[1:] - 1]])
    cache.placement = None
    return torch.cat(last)[prompt]


def runs(tokens: Tensor, mask: Tensor) -> Tensor:
    """(B,) bool, whether a row of (B, P) prompts is another one than the row before it."""
    tokens = tokens.masked_fill(~mask, 0)
    first = torch.ones_like(mask[:, 0])
    first[1:] = (tokens[1:] != tokens[:-1]).any(1) | (mask[1:] != mask[:-1]).any(1)
    return first


def pass_tokens(device: torch.device) -> int:
    """Tokens of prompts that run at a time: enough for full speed, and for little memory."""
    return 512 if device.type == "cpu" else 8192


def _parts(lengths: list[int], most: int) -> Iterator[slice]:
    """Neighbours with ``most`` tokens together, or one that has more."""
    start, held = 0, 0
    for row, length in enumerate(lengths):
        if held and held + length > most:
            yield slice(start, row)
            start, held = row, 0
        held += length
    yield slice(start, len(lengths))


def _placement(prompt: Tensor, lengths: Tensor, packed: Packed) -> Placement:
    """Of the rows whose prompt, by its number, is one of those that are packed."""
    count = len(lengths)
    reach = torch.where((prompt >= 0) & (prompt < count), lengths[prompt.clamp(0, count - 1)], 0)  # (B,)
    column = torch.arange(int(lengths.max()), device=prompt.device)
    row, column = (column < reach.unsqueeze(1)).nonzero(as_tuple=True)
    source = packed.place[packed.rows.bounds[prompt[row]] + column]
    return Placement(source=source, row=row, column=column)


def advanced(model: Any, tokens: Tensor, cache: Cache) -> Tensor:
    """Run one more token of each row.

    Args:
        model: inside `our_attention`, in eval mode.
        tokens: (B,) int64.
        cache: takes these tokens' states.

    Returns:
        (B, H) hidden states after the final norm.
    """
    if isinstance(cache, SharedCache):
        return cache.advance(tokens)
    cache.reach += 1
    states = stepped(model, tokens, cache)
    cache.lengths = cache.lengths + 1
    return states


def stepped(model: Any, tokens: Tensor, cache: DecodeCache) -> Tensor:
    """As :func:`advanced`, for a cache that reaches far enough and whose lengths the caller raises."""
    output = model.base_model(
        input_ids=tokens.unsqueeze(1),
        attention_mask=tokens.new_ones(
            1, 1, 1, 1, dtype=torch.bool
        ),  # four dimensions: taken for a made mask
        position_ids=cache.lengths.unsqueeze(1),
        use_cache=False,
        decode_cache=cache,
    )
    states: Tensor = output.last_hidden_state[:, 0]
    return states


def token_bytes(model: Any) -> int:
    """What one token takes in the cache over all layers, seen by running one; inside `our_attention`."""
    device = next(model.parameters()).device
    one = torch.zeros(1, 1, dtype=torch.int64, device="cpu" if device.type == "meta" else device)
    return prefilled(model, one, torch.ones_like(one, dtype=torch.bool), room=0)[1].bytes
