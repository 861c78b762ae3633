"""Token lists of unequal length into rectangular batches. Masks come from lengths, never from token ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf.batch import ComparisonBatch, Comparisons, PreferenceBatch, PromptBatch, SequenceBatch
from rlhf.data.comparison_rows import Judgement
from rlhf.data.encoding import Encoded


def pad_sequences(rows: Sequence[Encoded], *, pad_id: int) -> SequenceBatch:
    """Texts padded on the right to the longest of them."""
    width = max(len(row.tokens) for row in rows)
    targets = [row.targets + [False] * (width - len(row.targets)) for row in rows]
    return SequenceBatch(
        tokens=torch.tensor([row.tokens + [pad_id] * (width - len(row.tokens)) for row in rows]),
        attention_mask=torch.arange(width) < _lengths([row.tokens for row in rows]),
        mask=torch.tensor(targets, dtype=torch.bool),
    )


def pad_preferences(
    chosen: Sequence[Encoded], rejected: Sequence[Encoded], margins: Sequence[float], *, pad_id: int
) -> PreferenceBatch:
    """Pairs; each side is padded to its own longest text."""
    return PreferenceBatch(
        chosen=pad_sequences(chosen, pad_id=pad_id),
        rejected=pad_sequences(rejected, pad_id=pad_id),
        margin=torch.tensor(margins, dtype=torch.float32),
    )


def pad_comparisons(
    texts: Sequence[Sequence[Encoded]], judgements: Sequence[Sequence[Judgement]], *, pad_id: int
) -> ComparisonBatch:
    """Prompts with up to K responses each, every text padded to the longest of all.

    Args:
        texts: B prompts, the texts of each.
        judgements: B prompts, how their texts compare.
        pad_id: written on padding.
    """
    B, K = len(texts), max(map(len, texts))
    nothing = Encoded(tokens=[], targets=[])
    flat = pad_sequences(
        [text for row in texts for text in (*row, *[nothing] * (K - len(row)))], pad_id=pad_id
    )
    compared = torch.zeros(B, K, K, dtype=torch.bool)
    label, margin = torch.zeros(B, K, K), torch.zeros(B, K, K)
    for row, found in enumerate(judgements):
        for one in found:
            place = row, one.first, one.second
            compared[place], label[place], margin[place] = True, one.label, one.margin
    return ComparisonBatch(
        tokens=flat.tokens.view(B, K, -1),
        attention_mask=flat.attention_mask.view(B, K, -1),
        mask=flat.mask.view(B, K, -1),
        judged=Comparisons(compared=compared, label=label, margin=margin),
    )


def pad_prompts(
    prompts: Sequence[list[int]], index: Tensor, group: Tensor, *, pad_id: int, width: int | None = None
) -> PromptBatch:
    """Prompts padded on the left to ``width``, by default the longest of them.

    Args:
        prompts: B token lists.
        index: (B,) int64 row of each prompt in its data set.
        group: (B,) int64 equal numbers are responses to the same drawn prompt.
        pad_id: written on padding.
        width: positions P.

    Raises:
        ValueError: a prompt is longer than ``width``.
    """
    longest = max(len(prompt) for prompt in prompts)
    width = longest if width is None else width
    if longest > width:
        raise ValueError(f"a prompt of {longest} tokens does not fit in {width} positions")
    return PromptBatch(
        tokens=torch.tensor([[pad_id] * (width - len(prompt)) + prompt for prompt in prompts]),
        mask=torch.arange(width) >= width - _lengths(prompts),
        index=index,
        group=group,
    )


def _lengths(rows: Sequence[list[int]]) -> Tensor:
    return torch.tensor([[len(row)] for row in rows])  # (B, 1)
