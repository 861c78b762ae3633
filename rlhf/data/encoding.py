"""Rows into token ids, and which of them are targets.

Flat rows: prompt and response are tokenised apart and joined, so that no merge crosses the boundary
(numerics D6). The tokenizer's begin token, if it writes one, comes once, before the prompt; one end token
follows the response. The texts are taken as they are: a space at the boundary is the caller's, and the
name of a special token inside a text is read as that token.

Chat rows: see ``chat.py``. Special tokens are the template's affair there, the begin token included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from transformers import PreTrainedTokenizerBase

from rlhf.data.chat import encode_conversation, render
from rlhf.data.rows import Message, PromptRow, SupervisedRow
from rlhf.data.tokenizers import begin_ids, tokenized


class Targets(Enum):
    """Which tokens a supervised row trains. For flat rows the first two are the same."""

    response = "response"  # the response and its end token
    assistant = "assistant"  # and every earlier assistant turn
    all = "all"  # every token that another one precedes


@dataclass(kw_only=True, slots=True)
class Encoded:
    """A text as tokens."""

    tokens: list[int]
    targets: list[bool]
    """True on tokens to be predicted; never the first one, which nothing precedes."""


def prompt_text(row: PromptRow, tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt as the model reads it, up to the header of the assistant's turn; no begin token added."""
    if isinstance(row.prompt, str):
        return row.prompt
    return render(row.prompt, tokenizer, row.where, header=True)


def encode_prompts(rows: Sequence[PromptRow], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Each prompt's tokens, the begin token included.

    Raises:
        ValueError: a prompt has no token, or it is chat and the tokenizer has no usable chat template.
    """
    begin = begin_ids(tokenizer)
    encoded = []
    for row, tokens in zip(
        rows, tokenized([prompt_text(row, tokenizer) for row in rows], tokenizer), strict=True
    ):
        encoded.append(_begun(tokens, begin) if isinstance(row.prompt, str) else tokens)
        if not encoded[-1]:
            raise ValueError(f"{row.where}: the prompt is empty and the tokenizer writes no begin token")
    return encoded


def encode_supervised(
    rows: Sequence[SupervisedRow], tokenizer: PreTrainedTokenizerBase, *, targets: Targets
) -> list[Encoded]:
    """Of each row prompt, response and one end token.

    Raises:
        ValueError: no end token exists, a response is empty after the template, or the template cannot be
            followed exactly.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end token (eos_token)")
    flat = iter(_flat([row for row in rows if isinstance(row.prompt, str)], tokenizer))
    encoded = []
    for row in rows:
        tokens, marks = (
            next(flat) if isinstance(row.prompt, str) else _chat(row, row.prompt, tokenizer, targets)
        )
        if targets is Targets.all:
            marks = [True] * len(tokens)
        encoded.append(Encoded(tokens=tokens, targets=[False, *marks[1:]]))
    return encoded


def _begun(tokens: list[int], begin: list[int]) -> list[int]:
    return tokens if tokens[:1] == begin else begin + tokens


def _flat(
    rows: Sequence[SupervisedRow], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[int], list[bool]]]:
    """Tokens and targets of rows whose prompt is plain text."""
    begin, end = begin_ids(tokenizer), tokenizer.eos_token_id
    prompts = tokenized([str(row.prompt) for row in rows], tokenizer)
    responses = tokenized([row.response for row in rows], tokenizer)
    for row, prompt, response in zip(rows, prompts, responses, strict=True):
        before = _begun(prompt, begin)
        after = response if response[-1:] == [end] else [*response, end]
        if len(after) == 1:
            raise ValueError(f"{row.where}: the response {row.response!r} has no token of its own")
        yield before + after, [False] * len(before) + [True] * len(after)


def _chat(
    row: SupervisedRow, prompt: list[Message], tokenizer: PreTrainedTokenizerBase, targets: Targets
) -> tuple[list[int], list[bool]]:
    turns = [*prompt, {"role": "assistant", "content": row.response}]
    assistant = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    trained = assistant if targets is Targets.assistant else assistant[-1:]
    return encode_conversation(turns, trained, tokenizer, row.where)
