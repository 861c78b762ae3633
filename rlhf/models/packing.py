"""Rows end to end, without padding: everything but attention sees one row of real tokens.

The model is given (1, N) tokens whose positions start again at 0 with every row. Rows that begin alike run
that once (`rlhf.models.beginnings`). Attention is ours: each row attends to itself alone, its beginning
included. It replaces transformers' own "sdpa", which it still calls where rows are padded. The
sampler's rows are one token each and attend to a `rlhf.models.decode_cache.DecodeCache`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlhf.batch import position_ids
from rlhf.kernels.cpu_attention import RowTable, has_row_attention, row_attention
from rlhf.models.beginnings import Beginning, beginnings, places

if TYPE_CHECKING:
    from rlhf.models.decode_cache import DecodeCache

NAME = "packed_rows"
KNOWN = {"full_attention", "sliding_attention"}
"""Kinds of layers that can be told where a row ends; a recurrent one cannot."""


@dataclass(kw_only=True, slots=True)
class PackedRows:
    """Where the rows of a packed sequence end; travels through the model as a keyword of its forward."""

    lengths: list[int]
    """Tokens of each row that stand in the sequence, none empty."""
    begun: list[Beginning]
    """How each row begins: with tokens of another one, that do not stand in the sequence again."""
    bounds: Tensor
    """(rows + 1,) int32, where whole rows would begin, and the end."""
    table: RowTable
    """The same for the CPU's attention."""


@dataclass(kw_only=True, slots=True)
class Packed:
    """Rows end to end, as a model reads them."""

    tokens: Tensor
    """(1, M) int64, those that are run."""
    positions: Tensor
    """(1, M) int64."""
    rows: PackedRows
    place: Tensor
    """(N,) int64, at which of the M the state of each real token is found, row after row."""

    @classmethod
    def of(cls, tokens: Tensor, attention_mask: Tensor) -> Self:
        """Pack the N real tokens.

        Args:
            tokens: (B, L) int64.
            attention_mask: (B, L) bool, True somewhere.
        """
        real = tokens[attention_mask]
        lengths = [n for n in attention_mask.sum(1).tolist() if n > 0]
        begun = beginnings([row.tolist() for row in real.cpu().split(lengths)])
        run, place = (part.to(tokens.device) for part in places(lengths, begun))
        own = [length - row.same for length, row in zip(lengths, begun, strict=True)]
        rows = PackedRows(
            lengths=own,
            begun=begun,
            bounds=F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(tokens.device, torch.int32),
            table=RowTable.of(own, *zip(*begun, strict=True)),
        )
        positions = position_ids(attention_mask)[attention_mask]
        return cls(tokens=real[run][None], positions=positions[run][None], rows=rows, place=place)

    def states(self, model: Any, **others: Any) -> Tensor:
        """(M, H) hidden states after the final norm (numerics D3, D4).

        Args:
            model: after :func:`pack`.
            others: keywords for its attention.
        """
        tokens = self.tokens.to(model.device)
        output = model.base_model(
            input_ids=tokens,
            attention_mask=tokens.new_ones(1, 1, 1, 1, dtype=torch.bool),  # four dimensions: a made mask
            position_ids=self.positions.to(model.device),
            use_cache=False,
            packed_rows=self.rows,
            **others,
        )
        states: Tensor = output.last_hidden_state[0]
        return states


def pack(model: Any) -> None:
    """Let a transformers model run rows end to end.

    Raises:
        ValueError: its attention is not torch's scaled dot product, or it has layers of another kind.
    """
    kind, given = type(model).__name__, model.config._attn_implementation
    others = set(getattr(model.config, "layer_types", None) or ()) - KNOWN
    if others:
        raise ValueError(
            f"{kind} has layers of {sorted(others)[0]}, which rows end to end would mix; set packed=false"
        )
    if given == "sdpa":
        for part in (
            model,
            model.base_model,
        ):  # which transformers 5.17 leaves out where it has a config of its own
            part.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise ValueError(f"{kind} has {given} attention, rows end to end need sdpa; set packed=false")


def unpacked(values: Tensor, mask: Tensor) -> Tensor:
    """The values at the places where ``mask`` is True, row after row, 0 elsewhere.

    Args:
        values: (N, …).
        mask: (B, L) bool, N of them True.

    Returns:
        (B, L, …).
    """
    return values.new_zeros(*mask.shape, *values.shape[1:]).index_put(mask.nonzero(as_tuple=True), values)


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_rows: PackedRows | None = None,
    decode_cache: DecodeCache | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer.

    Args:
        module: the layer.
        query: (1, heads, N, D); (B, heads, L, D) where rows are padded.
        key: (1, key heads, N, D).
        value: (1, key heads, N, D).
        attention_mask: not read where rows are packed.
        packed_rows: where rows end; None where they are padded, or one token each.
        decode_cache: takes the states of packed prompts; with one token a row, what it attends to.
        scaling: factor of the products.
        sliding_window: tokens that one attends to, itself included; None for all before it.
        others: of transformers, for padded rows.

    Returns:
        (1, N, heads, D), and no weights.
    """
    if decode_cache is not None and packed_rows is None:
        return decode_cache.attend(
            module.layer_idx, query, key, value, scaling=scaling, window=sliding_window
        ), None
    if decode_cache is not None:
        decode_cache.store(module.layer_idx, key, value)
    if packed_rows is None:
        padded: tuple[Tensor, None] = sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling=scaling,
            sliding_window=sliding_window,
            **others,
        )
        return padded
    table = packed_rows.table
    if has_row_attention(query, key, value, table):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        states = query[0], key[0], value[0]
        return row_attention(*states, table, scale=scale, window=sliding_window).unsqueeze(0), None
    q, k, v = (_whole(states, packed_rows) for states in (query, key, value))
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        found = _in_one_kernel(q, k, v, packed_rows.bounds, scale=scaling, window=sliding_window)
    else:
        found = [_row(*states, scaling, sliding_window) for states in zip(q, k, v, strict=True)]
    own = [row[:, :, same:] for row, (_, same) in zip(found, packed_rows.begun, strict=True)]
    return torch.cat(own, dim=2).transpose(1, 2).contiguous(), None


def _whole(states: Tensor, rows: PackedRows) -> list[Tensor]:
    """(1, heads, l, D) of each row, its beginning included.

    Queries of the beginning are there too: attention from them is made again and not read, which spares a
    mask, and costs little beside the layer's products.
    """
    own = states.split(rows.lengths, dim=2)
    return [
        torch.cat([own[leader][:, :, :same], part], dim=2) if same else part
        for part, (leader, same) in zip(own, rows.begun, strict=True)
    ]


def _row(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None) -> Tensor:
    """(1, heads, l, D) of one row; on a CPU faster than a padded batch or a block-diagonal mask."""
    length, grouped = query.shape[2], query.shape[1] != key.shape[1]
    if window is None or length <= window:
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped
        )
    near = torch.ones(length, length, dtype=torch.bool, device=query.device).tril().triu(1 - window)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=near, scale=scaling, enable_gqa=grouped
    )


def _in_one_kernel(
    query: Sequence[Tensor],
    key: Sequence[Tensor],
    value: Sequence[Tensor],
    bounds: Tensor,
    *,
    scale: float | None,
    window: int | None,
) -> list[Tensor]:
    """(1, heads, l, D) of each row, by torch's flash attention over rows of any length."""
    lengths, groups = [row.shape[2] for row in query], query[0].shape[1] // key[0].shape[1]
    longest = max(lengths)
    queries, keys, values = (torch.cat(list(rows), dim=2)[0].transpose(0, 1) for rows in (query, key, value))
    found = varlen_attn(
        queries,
        keys.repeat_interleave(groups, dim=1),
        values.repeat_interleave(groups, dim=1),
        bounds,
        bounds,
        longest,
        longest,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
    )
    assert isinstance(found, Tensor)
    return list(found.transpose(0, 1).unsqueeze(0).split(lengths, dim=2))


def _mask(*sizes: Any, attention_mask: Tensor | None = None, **others: Any) -> Tensor | None:
    """No (N, N) mask is built where none is given."""
    if attention_mask is None:
        return None
    mask: Tensor | None = sdpa_mask(*sizes, attention_mask=attention_mask, **others)
    return mask


# Outside of compiled graphs, of which there would be one for every table of lengths.
AttentionInterface.register(NAME, torch.compiler.disable(attention))
AttentionMaskInterface.register(NAME, _mask)
