"""Critic and reward model, one network (numerics D34): a backbone and one number per position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rlhf.models.actor import backbone, expect_positions
from rlhf.models.heads import ScalarHead
from rlhf.models.lora import LoRA
from rlhf.models.packing import Packed, pack, unpacked


class ScalarModel(nn.Module):
    """Any ``AutoModelForSequenceClassification`` with one label, its ``score`` swapped for a scalar head."""

    def __init__(self, model: Any, *, gradient_checkpointing: bool = False, packed: bool = False) -> None:
        """Wrap a transformers model.

        Args:
            model: a sequence classifier of transformers; the weights of its head are taken over.
            gradient_checkpointing: recompute activations in backward (in ``train()`` mode only).
            packed: run rows end to end (`rlhf.models.packing`), not side by side with padding.

        Raises:
            ValueError: the model has no ``score`` head with one output and no bias, takes no positions, or
                cannot be packed.
        """
        super().__init__()
        score = getattr(model, "score", None)
        if not isinstance(score, nn.Linear) or score.out_features != 1 or score.bias is not None:
            raise ValueError(
                f"{type(model).__name__} needs a linear head `score` with one output and no bias"
            )
        expect_positions(model)
        head = ScalarHead(score.in_features, dtype=score.weight.dtype, device=score.weight.device)
        head.weight = score.weight
        model.score = head
        if gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if packed:
            pack(model)
        self.packed: bool = packed
        self.lora: LoRA | None = None  # set where it has adapters
        self.model: Any = model

    @property
    def head(self) -> ScalarHead:
        """The head, in the place where the model keeps its ``score``."""
        return self.model.score

    @property
    def vocabulary(self) -> int:
        """Tokens that the model embeds."""
        return self.model.get_input_embeddings().num_embeddings

    def forward(self, tokens: Tensor, attention_mask: Tensor, first: int = 0) -> Tensor:
        """The head's output after reading each token from column ``first`` on.

        Args:
            tokens: (B, L) int64; what stands on masked positions is not read.
            attention_mask: (B, L) bool, padding on either side.
            first: first column wanted, in [0, L).

        Returns:
            (B, L − first) float32; column t belongs to hidden position ``first + t``; 0 where masked.

        Raises:
            ValueError: ``first`` is out of range.
        """
        if not 0 <= first < tokens.shape[1]:
            raise ValueError(f"ScalarModel: first must lie in [0, {tokens.shape[1]}), got {first}")
        if self.packed:
            packed = Packed.of(tokens, attention_mask)
            return unpacked(self.head(packed.states(self.model))[packed.place], attention_mask)[:, first:]
        hidden = backbone(self.model, tokens, attention_mask)[:, first:]
        return self.head(hidden).masked_fill(~attention_mask[:, first:], 0.0)


def state_values(values: Tensor, first: int, mask: Tensor) -> Tensor:
    """A critic's value of the state **before** each response token: head[:, P − 1 + t] (numerics D9).

    Args:
        values: (B, P + T) of a :class:`ScalarModel` over ``[prompt | response]``.
        first: P, the column of the first response token.
        mask: (B, T) bool over the response.

    Returns:
        (B, T), 0 where the mask is False.
    """
    return torch.where(mask, values[:, first - 1 : -1], 0.0)


def score_at_last(values: Tensor, attention_mask: Tensor) -> Tensor:
    """The score: the head's output at the right-most real token, wherever the padding is (numerics D21).

    Args:
        values: (B, L) of a :class:`ScalarModel`.
        attention_mask: (B, L) bool.

    Returns:
        (B,); 0 for a row without a real token.
    """
    columns = torch.arange(values.shape[1], device=values.device)
    last = torch.where(attention_mask, columns, -1).amax(1)
    scores = values.gather(1, last.clamp(min=0).unsqueeze(1)).squeeze(1)
    return torch.where(last >= 0, scores, 0.0)
