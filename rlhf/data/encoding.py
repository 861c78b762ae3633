"""Rows into token ids, and which of them are targets.

Flat rows: prompt and response are tokenised apart and joined, so that no merge crosses the boundary
(numerics D6). The tokenizer's begin token, if it writes one, comes once, before the prompt; one end token
follows the response. The texts are taken as they are: a space at the boundary is the caller's, and the
name of a special token inside a text is read as that token.

Chat rows: see ``chat.py``. Special tokens are the template's affair there, the begin token included.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from transformers import PreTrainedTokenizerBase

from rlhf.data.chat import encode_conversation, render
from rlhf.data.rows import Message, PromptRow, SupervisedRow
from rlhf.data.tokenizers import begin_ids, token_ids


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


def encode_prompt(row: PromptRow, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The prompt's tokens, the begin token included.

    Raises:
        ValueError: the prompt has no token, or it is chat and the tokenizer has no usable chat template.
    """
    text = prompt_text(row, tokenizer)
    tokens = _begun(text, tokenizer) if isinstance(row.prompt, str) else token_ids(tokenizer, text)
    if not tokens:
        raise ValueError(f"{row.where}: the prompt is empty and the tokenizer writes no begin token")
    return tokens


def encode_supervised(row: SupervisedRow, tokenizer: PreTrainedTokenizerBase, *, targets: Targets) -> Encoded:
    """Prompt, response and one end token.

    Raises:
        ValueError: no end token exists, the response is empty after the template, or the template cannot
            be followed exactly.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end token (eos_token)")
    if isinstance(row.prompt, str):
        tokens, marks = _flat(row, row.prompt, tokenizer)
    else:
        turns = [*row.prompt, {"role": "assistant", "content": row.response}]
        tokens, marks = encode_conversation(turns, _trained(turns, targets), tokenizer, row.where)
    if targets is Targets.all:
        marks = [True] * len(tokens)
    return Encoded(tokens=tokens, targets=[False, *marks[1:]])


def _begun(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    tokens, begin = token_ids(tokenizer, text), begin_ids(tokenizer)
    return tokens if tokens[:1] == begin else begin + tokens


def _flat(
    row: SupervisedRow, prompt: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[bool]]:
    before, after = _begun(prompt, tokenizer), token_ids(tokenizer, row.response)
    if after[-1:] != [tokenizer.eos_token_id]:
        after.append(tokenizer.eos_token_id)
    if len(after) == 1:
        raise ValueError(f"{row.where}: the response {row.response!r} has no token of its own")
    return before + after, [False] * len(before) + [True] * len(after)


def _trained(turns: list[Message], targets: Targets) -> list[int]:
    if targets is not Targets.assistant:
        return [len(turns) - 1]
    return [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
