"""Conversations into tokens: one rendering, one tokenisation, and exactly which tokens are the assistant's.

The template renders the conversation once, and that text is tokenised once. Rendered prefixes say which
characters a turn has, the offsets of that one tokenisation say which tokens. Where either does not fit
exactly the row is refused: the model would be trained on other tokens than it is prompted with.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rlhf.data.rows import Message
from rlhf.data.tokenizers import tokenized


def render(turns: list[Message], tokenizer: PreTrainedTokenizerBase, where: str, *, header: bool) -> str:
    """The conversation as text; with ``header`` up to where the assistant's next turn begins.

    Raises:
        ValueError: the tokenizer has no chat template, or the template refuses the conversation.
    """
    if tokenizer.chat_template is None:
        raise ValueError(f"{where}: chat messages need a chat template, the tokenizer has none")
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=header))
    except Exception as error:  # a template can raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{where}: the chat template refuses the messages: {reason}") from None


def encode_conversation(
    turns: list[Message], trained: Sequence[int], tokenizer: PreTrainedTokenizerBase, where: str
) -> tuple[list[int], list[bool]]:
    """Tokens of a conversation, and True on those of the trained turns and their end tokens.

    Nothing follows the last turn's end token, for a sampled response stops there too. Where the template
    writes no end token the tokenizer's is appended.

    Args:
        turns: the conversation; its last turn is the assistant's.
        trained: ascending indices of the assistant's turns to mark, the last turn among them.
        tokenizer: with a chat template and with offsets.
        where: the row, for complaints.

    Raises:
        ValueError: the template cannot be followed exactly, or leaves nothing of the last turn.
    """
    rendered = _Rendered.read(turns, tokenizer, where)
    marks = [False] * len(rendered.tokens)
    for number in trained:
        first, end = rendered.span(number)
        marks[first:end] = [True] * (end - first)
    if not tokenizer.decode(rendered.tokens[first:end], skip_special_tokens=True).strip():
        raise ValueError(f"{where}: the response is empty after the chat template")
    tokens, marks = rendered.tokens[:end], marks[:end]
    if not rendered.special(end - 1):
        tokens.append(tokenizer.eos_token_id)
        marks.append(True)
    return tokens, marks


@dataclass(kw_only=True, slots=True)
class _Rendered:
    """A conversation as text and as tokens."""

    turns: list[Message]
    tokenizer: PreTrainedTokenizerBase
    where: str
    text: str
    tokens: list[int]
    starts: list[int]
    """Character at which each token begins."""
    stops: list[int]
    """Character before which each token ends."""

    @classmethod
    def read(cls, turns: list[Message], tokenizer: PreTrainedTokenizerBase, where: str) -> _Rendered:
        text = render(turns, tokenizer, where, header=False)
        if not tokenizer.is_fast:
            raise ValueError(f"{where}: chat messages need a tokenizer with offsets (a fast tokenizer)")
        coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = coded["offset_mapping"]
        return cls(
            turns=turns,
            tokenizer=tokenizer,
            where=where,
            text=text,
            tokens=list(coded["input_ids"]),
            starts=[start for start, _ in offsets],
            stops=[stop for _, stop in offsets],
        )

    def span(self, number: int) -> tuple[int, int]:
        """First token of turn ``number``, and one past its end token, or past its text without one."""
        prompt = self._prefix(number, header=True)
        first = bisect_left(self.starts, len(prompt))
        if [self.tokens[:first]] != tokenized([prompt], self.tokenizer):
            raise ValueError(
                f"{self.where}: message {number} is joined with the text before it into one token; "
                f"the same prompt alone would have other tokens"
            )
        return first, self._end(number, first)

    def special(self, position: int) -> bool:
        """Whether the token there is a special one, which a template writes and a text does not."""
        return not self.tokenizer.decode([self.tokens[position]], skip_special_tokens=True)

    def _end(self, number: int, first: int) -> int:
        stop = len(self._prefix(number + 1, header=False))
        last = end = bisect_left(self.starts, stop)
        while end > first and self._blank(end - 1):  # ChatML writes a newline after its end token
            end -= 1
        if end > first and self.special(end - 1):
            return end
        if last > first and self.stops[last - 1] > stop:
            raise ValueError(f"{self.where}: message {number} is joined with the next one into one token")
        return last

    def _blank(self, position: int) -> bool:
        return (
            not self.special(position) and not self.text[self.starts[position] : self.stops[position]].strip()
        )

    def _prefix(self, number: int, *, header: bool) -> str:
        """The first ``number`` turns, which must be rendered the same with and without the rest."""
        prefix = render(self.turns[:number], self.tokenizer, self.where, header=header)
        if not self.text.startswith(prefix):
            raise ValueError(
                f"{self.where}: the chat template writes the first {number} messages otherwise when more "
                f"follow, so the mask of message {number if header else number - 1} is not exact"
            )
        return prefix
