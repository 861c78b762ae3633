"""Responses that somebody wants to have scored, as they come over the wire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf.batch import SequenceBatch
from rlhf.data.collation import pad_sequences
from rlhf.data.encoding import Encoded, encode_prompts, prompt_text
from rlhf.data.rows import Prompt, PromptRow, prompt_row
from rlhf.data.sets import pad_id_of
from rlhf.data.sources import Row
from rlhf.data.tokenizers import tokenized


@dataclass(kw_only=True, slots=True)
class Asked:
    """Responses that somebody wants to have scored."""

    prompts: list[Prompt]
    responses: list[str]
    columns: list[dict[str, Any]]
    ended: list[bool]
    """False where a response was cut off: no end token follows it."""

    def __len__(self) -> int:
        return len(self.prompts)

    @staticmethod
    def of(content: Any) -> Asked:
        """A request's object, checked.

        Raises:
            ValueError: a field is missing, of another length, or of the wrong kind; names it.
        """
        if not isinstance(content, dict):
            raise ValueError(f"the request is a JSON {type(content).__name__}, expected an object")
        if unknown := sorted(set(content) - {"prompts", "responses", "columns", "ended"}):
            raise ValueError(f"unknown field {unknown[0]!r}; there are prompts, responses, columns, ended")
        responses = _listed(content, "responses", str, None)
        rows = len(responses)
        if not rows:
            raise ValueError("field 'responses' is empty")
        prompts = _listed(content, "prompts", (str, list), rows)
        for number, prompt in enumerate(prompts):
            prompt_row(Row(values={"prompt": prompt}, where=f"prompt {number}"))
        return Asked(
            prompts=prompts,
            responses=responses,
            columns=_listed(content, "columns", dict, rows, default={}),
            ended=_listed(content, "ended", bool, rows, default=True),
        )

    @staticmethod
    def together(requests: Sequence[Asked]) -> Asked:
        """The rows of all requests, in their order."""
        return Asked(
            prompts=[prompt for one in requests for prompt in one.prompts],
            responses=[response for one in requests for response in one.responses],
            columns=[columns for one in requests for columns in one.columns],
            ended=[ended for one in requests for ended in one.ended],
        )


@dataclass(kw_only=True, slots=True)
class Reader:
    """Requests as functions and models read them."""

    tokenizer: PreTrainedTokenizerBase | None
    """None where no part of the reward is a model, and no prompt a conversation."""
    max_length: int | None
    """Most tokens of a text that a model reads; longer ones are refused."""

    def prompts(self, asked: Asked) -> list[str]:
        """(B) prompt texts, conversations through the template.

        Raises:
            ValueError: there is no tokenizer, or no template.
        """
        return [
            row.prompt if isinstance(row.prompt, str) else prompt_text(row, self._needed("a conversation"))
            for row in _rows(asked)
        ]

    def batch(self, asked: Asked) -> tuple[SequenceBatch, PreTrainedTokenizerBase]:
        """Prompt, response, and an end token where the response ended: the tokens of a rollout.

        Raises:
            ValueError: there is no tokenizer, or a text is too long.
        """
        tokenizer = self._needed("a reward model")
        prompts, responses = encode_prompts(_rows(asked), tokenizer), tokenized(asked.responses, tokenizer)
        found = []
        for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            needs_end = asked.ended[number] and response[-1:] != [tokenizer.eos_token_id]
            tokens = prompt + response + ([tokenizer.eos_token_id] if needs_end else [])
            if self.max_length is not None and len(tokens) > self.max_length:
                raise ValueError(
                    f"row {number} has {len(tokens)} tokens, more than max_length={self.max_length}"
                )
            marks = [place >= len(prompt) for place in range(len(tokens))]
            found.append(Encoded(tokens=tokens, targets=marks))
        return pad_sequences(found, pad_id=pad_id_of(tokenizer)), tokenizer

    def _needed(self, what: str) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise ValueError(f"{what} needs a tokenizer, and the endpoint was started without one")
        return self.tokenizer


def _rows(asked: Asked) -> list[PromptRow]:
    return [
        PromptRow(prompt=prompt, columns={}, where=f"prompt {number}")
        for number, prompt in enumerate(asked.prompts)
    ]


def _listed(
    content: dict[str, Any], name: str, kind: Any, rows: int | None, default: Any = None
) -> list[Any]:
    """A field that is a list of ``kind``, ``rows`` long; of an optional one, that is absent, its default."""
    if default is not None and content.get(name) is None:
        return [default] * (rows or 0)
    values = content.get(name)
    if not isinstance(values, list):
        raise ValueError(f"field {name!r} is {type(values).__name__}, expected a list")
    if rows is not None and len(values) != rows:
        raise ValueError(f"field {name!r} has {len(values)} entries, 'responses' has {rows}")
    for number, value in enumerate(values):
        if not isinstance(value, kind):
            raise ValueError(f"field {name!r}, entry {number} is {type(value).__name__}")
    return values
