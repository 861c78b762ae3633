"""Batches: dataclasses of tensors, one type per stage, the shape beside each field.

B rows, P prompt positions (left-padded), T response positions (right-padded), L positions of a
right-padded sequence. Index t of a ``(B, T)`` tensor is response token t; a value at t is of the state
*before* that token. Masks are bool, True = real. Masked positions hold 0, and nothing reads them.

A rollout of two rows, P = 3 and T = 4 (``·`` is PAD, ``$`` the end token)::

    tokens            ·  a  b | c  d  $  ·        x  y  z | u  v  w  q
    prompt_mask       0  1  1                     1  1  1
    mask                        1  1  1  0                  1  1  1  1
    ended                            True                      False
    position_ids      0  0  1   2  3  4  4        0  1  2   3  4  5  6
"""

from rlhf.batch.rollouts import Experience, Prefixes, PromptBatch, Rollout
from rlhf.batch.rows import Rows, concatenate, position_ids
from rlhf.batch.texts import (
    ComparisonBatch,
    Comparisons,
    LabelledBatch,
    PreferenceBatch,
    SequenceBatch,
)

__all__ = [
    "ComparisonBatch",
    "Comparisons",
    "Experience",
    "LabelledBatch",
    "PreferenceBatch",
    "Prefixes",
    "PromptBatch",
    "Rollout",
    "Rows",
    "SequenceBatch",
    "concatenate",
    "position_ids",
]
