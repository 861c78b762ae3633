"""Rows with a meaning: demonstrations, preferences and prompts, checked field by field.

Two shapes are read. Flat: ``prompt`` and ``response`` (or ``chosen`` and ``rejected``) are strings.
Chat: they are lists of ``{"role": …, "content": …}``, or a demonstration is one list ``messages``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rlhf.data.sources import Row

ROLES = ("system", "user", "assistant", "tool")

COMPLETION = "completion"
"""What other frameworks call a response."""

Message = dict[str, Any]
"""``role`` and ``content``, both strings; whatever else the row gave reaches the chat template."""

Prompt = str | list[Message]
"""Plain text, or the turns of a conversation that the response follows."""


@dataclass(kw_only=True, slots=True)
class PromptRow:
    """A prompt to be answered."""

    prompt: Prompt
    columns: dict[str, Any]
    """The row's other fields, as stored; reward functions see them."""
    where: str


@dataclass(kw_only=True, slots=True)
class SupervisedRow:
    """A prompt and the response to imitate."""

    prompt: Prompt
    response: str
    columns: dict[str, Any]
    where: str


@dataclass(kw_only=True, slots=True)
class PreferenceRow:
    """A prompt and two responses, the first better by at least ``margin`` (units of the score)."""

    prompt: Prompt
    chosen: str
    rejected: str
    margin: float
    columns: dict[str, Any]
    where: str


@dataclass(kw_only=True, slots=True)
class LabelledRow:
    """A prompt and a response that somebody called good or bad."""

    prompt: Prompt
    response: str
    desirable: bool
    columns: dict[str, Any]
    where: str


def prompt_row(row: Row, *, prompt_field: str = "prompt", as_chat: bool = False) -> PromptRow:
    """The row's prompt; with ``as_chat`` a plain string becomes one user turn.

    Raises:
        ValueError: no such field, neither text nor turns, an unknown role, or turns that the assistant ends.
    """
    prompt = checked_prompt(
        field_of(row, prompt_field), f"{row.where}: field {prompt_field!r}", as_chat=as_chat
    )
    return PromptRow(prompt=prompt, columns=_others(row, prompt_field), where=row.where)


def supervised_row(
    row: Row,
    *,
    prompt_field: str = "prompt",
    response_field: str = "response",
    messages_field: str = "messages",
    as_chat: bool = False,
) -> SupervisedRow:
    """The row's demonstration. A row with ``messages_field`` is a conversation that the assistant ends.

    Raises:
        ValueError: a field is missing, of the wrong type or empty, or a role is unknown.
    """
    where = row.where
    if row.values.get(messages_field) is not None:
        turns = _turns(row.values[messages_field], f"{where}: field {messages_field!r}")
        response = _reply(turns, f"{where}: field {messages_field!r}")
        return SupervisedRow(
            prompt=turns[:-1], response=response, columns=_others(row, messages_field), where=where
        )
    prompt = checked_prompt(field_of(row, prompt_field), f"{where}: field {prompt_field!r}", as_chat=as_chat)
    response = checked_response(field_of(row, response_field), prompt, f"{where}: field {response_field!r}")
    columns = _others(row, prompt_field, response_field)
    return SupervisedRow(prompt=prompt, response=response, columns=columns, where=where)


def preference_row(
    row: Row,
    *,
    prompt_field: str = "prompt",
    chosen_field: str = "chosen",
    rejected_field: str = "rejected",
    margin_field: str = "margin",
    as_chat: bool = False,
) -> PreferenceRow:
    """The row's pair. Without a prompt, two conversations that differ in their last turn give one.

    Raises:
        ValueError: a field is missing, of the wrong type or empty, a role is unknown, or the two
            conversations do not share the prompt.
    """
    where = row.where
    chosen, rejected = field_of(row, chosen_field), field_of(row, rejected_field)
    inside = row.values.get(prompt_field) is None and isinstance(chosen, list) and len(chosen) > 1
    given = chosen[:-1] if inside else field_of(row, prompt_field)
    prompt = checked_prompt(
        given, f"{where}: field {prompt_field!r}", as_chat=as_chat or isinstance(chosen, list)
    )
    return PreferenceRow(
        prompt=prompt,
        chosen=checked_response(chosen, prompt, f"{where}: field {chosen_field!r}"),
        rejected=checked_response(rejected, prompt, f"{where}: field {rejected_field!r}"),
        margin=_margin(row.values.get(margin_field), f"{where}: field {margin_field!r}"),
        columns=_others(row, prompt_field, chosen_field, rejected_field, margin_field),
        where=where,
    )


def labelled_row(
    row: Row,
    *,
    prompt_field: str = "prompt",
    response_field: str = "response",
    label_field: str = "label",
    as_chat: bool = False,
) -> LabelledRow:
    """The row's labelled response, which may also be called ``completion``, or end a list ``messages``.

    Raises:
        ValueError: a field is missing, of the wrong type or empty, a role is unknown, or the label is
            neither true nor false.
    """
    if response_field not in row.values and COMPLETION in row.values:
        response_field = COMPLETION
    label = field_of(row, label_field)
    if label not in (True, False) or isinstance(label, float):
        raise ValueError(
            f"{row.where}: field {label_field!r} is {label!r}, expected true (good) or false (bad)"
        )
    given = supervised_row(
        row,
        prompt_field=prompt_field,
        response_field=response_field,
        as_chat=as_chat or isinstance(row.values.get(response_field), list),
    )
    columns = {name: value for name, value in given.columns.items() if name != label_field}
    return LabelledRow(
        prompt=given.prompt,
        response=given.response,
        desirable=bool(label),
        columns=columns,
        where=row.where,
    )


def both_sides(pair: PreferenceRow) -> list[LabelledRow]:
    """The chosen response as a good one, the other as a bad one."""
    return [
        LabelledRow(
            prompt=pair.prompt, response=response, desirable=good, columns=pair.columns, where=pair.where
        )
        for response, good in ((pair.chosen, True), (pair.rejected, False))
    ]


def field_of(row: Row, name: str) -> Any:
    """The field's value, as stored.

    Raises:
        ValueError: the row has none of that name; names those that it has.
    """
    if name not in row.values:
        raise ValueError(f"{row.where}: no field {name!r}; the row has {', '.join(map(repr, row.values))}")
    return row.values[name]


def _others(row: Row, *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.values.items() if name not in names}


def checked_prompt(value: Any, what: str, *, as_chat: bool) -> Prompt:
    """A string, or the turns of a conversation; ``what`` names the field in messages.

    Raises:
        ValueError: it is neither, a role is unknown, or the assistant has the last turn.
    """
    if isinstance(value, str):
        return [{"role": "user", "content": value}] if as_chat else value
    turns = _turns(value, what)
    if turns[-1]["role"] == "assistant":
        raise ValueError(f"{what} ends with an assistant turn, which leaves nothing to answer")
    return turns


def _turns(value: Any, what: str) -> list[Message]:
    """The conversation, copied without the nulls that columnar files put in place of absent keys."""
    if not isinstance(value, list):
        raise ValueError(f"{what} is {_kind(value)}, expected a string or a list of messages")
    if not value:
        raise ValueError(f"{what} is an empty list of messages")
    return [_message(message, f"{what}, message {number}") for number, message in enumerate(value)]


def _message(value: Any, what: str) -> Message:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {_kind(value)}, expected an object with role and content")
    for key in ("role", "content"):
        if not isinstance(value.get(key), str):
            raise ValueError(f"{what} has {key} = {_kind(value.get(key))}, expected a string")
    if value["role"] not in ROLES:
        raise ValueError(f"{what} has the role {value['role']!r}, known are {', '.join(ROLES)}")
    return {key: part for key, part in value.items() if part is not None}


def checked_response(value: Any, prompt: Prompt, what: str) -> str:
    """A string, or the last turn of a conversation that repeats the prompt or consists of that turn.

    Raises:
        ValueError: it is neither, empty, or holds more than text.
    """
    if isinstance(value, str):
        if not value:
            raise ValueError(f"{what} is empty")
        return value
    turns = _turns(value, what)
    if isinstance(prompt, str) or turns[:-1] not in ([], prompt):
        raise ValueError(f"{what} must be one assistant turn, or the prompt's turns followed by one")
    return _reply(turns, what)


def _reply(turns: list[Message], what: str) -> str:
    last = turns[-1]
    if last["role"] != "assistant":
        raise ValueError(f"{what} ends with a turn of {last['role']!r}, expected 'assistant'")
    if not last["content"]:
        raise ValueError(f"{what} ends with an empty assistant turn")
    if "tool_calls" in last:
        raise ValueError(f"{what} ends with tool_calls; a response is text, write the call as content")
    return last["content"]


def _margin(value: Any, what: str) -> float:
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{what} is {value!r}, expected a finite number")
    return float(value)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")
