from __future__ import annotations

import pytest
import torch

from rlhf.data.collation import pad_preferences, pad_prompts, pad_sequences
from rlhf.data.encoding import Encoded

LONG = Encoded(tokens=[5, 0, 7], targets=[False, True, True])
SHORT = Encoded(tokens=[5, 9], targets=[False, True])
PAD = 0  # also a real token of LONG


def test_sequences_are_padded_on_the_right() -> None:
    batch = pad_sequences([LONG, SHORT], pad_id=PAD)
    assert batch.tokens.tolist() == [[5, 0, 7], [5, 9, PAD]]
    assert batch.attention_mask.tolist() == [[True, True, True], [True, True, False]]
    assert batch.mask.tolist() == [[False, True, True], [False, True, False]]


def test_pairs_keep_their_sides_and_margins() -> None:
    batch = pad_preferences([LONG, SHORT], [SHORT, SHORT], [0.5, 0.0], pad_id=PAD)
    assert batch.chosen.tokens.tolist() == [[5, 0, 7], [5, 9, PAD]]
    assert batch.rejected.tokens.tolist() == [[5, 9], [5, 9]]
    assert batch.margin.tolist() == [0.5, 0.0]


def test_prompts_are_padded_on_the_left() -> None:
    index, group = torch.tensor([4, 2]), torch.tensor([0, 1])
    batch = pad_prompts([[0, 8], [3, 0, 6]], index, group, pad_id=PAD)
    assert batch.tokens.tolist() == [[PAD, 0, 8], [3, 0, 6]]
    assert batch.mask.tolist() == [[False, True, True], [True, True, True]]
    assert (batch.index.tolist(), batch.group.tolist()) == ([4, 2], [0, 1])


def test_prompts_fill_a_given_width_or_are_refused() -> None:
    one = torch.tensor([0])
    assert pad_prompts([[3, 4]], one, one, pad_id=9, width=4).tokens.tolist() == [[9, 9, 3, 4]]
    with pytest.raises(ValueError, match="a prompt of 2 tokens does not fit in 1 positions"):
        pad_prompts([[3, 4]], one, one, pad_id=9, width=1)
