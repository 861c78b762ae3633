"""Rows into token ids, and which of them are targets.

Flat rows: prompt and response are tokenised apart and joined, so that no merge crosses the boundary
(numerics D6). The tokenizer's begin token, if it writes one, comes once before the prompt; one end token
follows the response. The texts are taken as they are: a space at the boundary is the caller's.

Chat rows: the conversation is rendered once by the tokenizer's template and tokenised once. Rendered
prefixes say which characters are the assistant's, the offsets of that one tokenisation say which tokens,
and a prompt that would be tokenised otherwise by itself is refused. Special tokens are the template's
affair; an end token is added only where it writes none. The sequence stops at the last end token, for a
response sampled from the model stops there too.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from enum import Enum

from transformers import PreTrainedTokenizerBase

from rlhf.data.rows import Message, PromptRow, SupervisedRow


class Targets(Enum):
    """Which tokens a supervised row trains."""

    response = "response"
    """The response and its end token."""
    assistant = "assistant"
    """The same, and every earlier assistant turn of a conversation."""
    all = "all"
    """Every token that another one precedes."""


@dataclass(kw_only=True, slots=True)
class Encoded:
    """A text as tokens."""

    tokens: list[int]
    targets: list[bool]
    """True on tokens to be predicted; never the first, which nothing precedes."""


def begin_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer writes before every text: its begin token, or nothing."""
    written = tokenizer("a")["input_ids"][0]
    plain = tokenizer("a", add_special_tokens=False)["input_ids"][0]
    return [written] if written == tokenizer.bos_token_id and written != plain else []


def prompt_text(row: PromptRow | SupervisedRow, tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt as the model reads it, up to the header of the assistant's turn; no begin token added."""
    if isinstance(row.prompt, str):
        return row.prompt
    return _render(row.prompt, tokenizer, row.where, header=True)


def encode_prompt(row: PromptRow | SupervisedRow, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The prompt's tokens, the begin token included.

    Raises:
        ValueError: the prompt has no token, or it is chat and the tokenizer has no usable chat template.
    """
    tokens = _plain(prompt_text(row, tokenizer), tokenizer)
    begin = begin_tokens(tokenizer) if isinstance(row.prompt, str) else []
    if tokens[:1] != begin:
        tokens = begin + tokens
    if not tokens and isinstance(row, PromptRow):
        raise ValueError(f"{row.where}: the prompt is empty and the tokenizer writes no begin token")
    return tokens


def encode_supervised(row: SupervisedRow, tokenizer: PreTrainedTokenizerBase, *, targets: Targets) -> Encoded:
    """Prompt, response and one end token.

    Raises:
        ValueError: the response is empty after the template, or the template cannot be followed exactly.
    """
    encoded = _flat(row, tokenizer) if isinstance(row.prompt, str) else _chat(row, row.prompt, tokenizer, targets)
    if targets is Targets.all:
        encoded.targets = [True] * len(encoded.tokens)
    encoded.targets[0] = False
    return encoded


def _flat(row: SupervisedRow, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    prompt = encode_prompt(row, tokenizer)
    response = _plain(row.response, tokenizer)
    if response[-1:] != [tokenizer.eos_token_id]:
        response.append(tokenizer.eos_token_id)
    if len(response) == 1:
        raise ValueError(f"{row.where}: the response {row.response!r} has no token of its own")
    return Encoded(tokens=prompt + response, targets=[False] * len(prompt) + [True] * len(response))


def _chat(
    row: SupervisedRow, prompt: list[Message], tokenizer: PreTrainedTokenizerBase, targets: Targets
) -> Encoded:
    turns = [*prompt, {"role": "assistant", "content": row.response}]
    text = _render(turns, tokenizer, row.where)
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens: list[int] = list(coded["input_ids"])
    starts = [start for start, _ in coded["offset_mapping"]]
    marks = [False] * len(tokens)
    end = 0
    for number in _trained_turns(turns, targets):
        first = _turn_start(turns[:number], text, tokens, starts, tokenizer, row.where)
        stop = len(_prefix(turns[: number + 1], text, tokenizer, row.where, header=False))
        end = _turn_end(text, stop, coded["offset_mapping"], first, tokens, tokenizer)
        marks[first:end] = [True] * (end - first)
    _expect_text(tokens[first:end], tokenizer, row.where)
    tokens, marks = tokens[:end], marks[:end]
    if tokens[-1] not in _specials(tokenizer):  # the template closes a turn with text, or with nothing
        tokens.append(tokenizer.eos_token_id)
        marks.append(True)
    return Encoded(tokens=tokens, targets=marks)


def _trained_turns(turns: list[Message], targets: Targets) -> list[int]:
    if targets is Targets.assistant:
        return [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    return [len(turns) - 1]


def _turn_start(
    before: list[Message],
    text: str,
    tokens: list[int],
    starts: list[int],
    tokenizer: PreTrainedTokenizerBase,
    where: str,
) -> int:
    """First token of the turn that follows ``before``.

    Its prompt must have the same tokens alone, else the model would be prompted with others than it saw.
    """
    prefix = _prefix(before, text, tokenizer, where, header=True)
    first = bisect_left(starts, len(prefix))
    if tokens[:first] != _plain(prefix, tokenizer):
        raise ValueError(f"{where}: turn {len(before)} merges with the template's header into one token")
    return first


def _turn_end(
    text: str,
    stop: int,
    offsets: list[tuple[int, int]],
    first: int,
    tokens: list[int],
    tokenizer: PreTrainedTokenizerBase,
) -> int:
    """One past the turn's last token: its end token if only blanks follow that one, else its last text."""
    last = bisect_left([start for start, _ in offsets], stop)
    specials = _specials(tokenizer)
    for position in range(last - 1, first - 1, -1):
        if tokens[position] in specials:
            return position + 1 if not text[offsets[position][1] : stop].strip() else last
    return last
