from __future__ import annotations

from typing import Any

import pytest

from rlhf.data.rows import preference_row, prompt_row, supervised_row
from rlhf.data.sources import Row

USER = {"role": "user", "content": "hi"}
GOOD = {"role": "assistant", "content": "good"}
BAD = {"role": "assistant", "content": "bad"}


def row(**values: Any) -> Row:
    return Row(values=values, where="f.jsonl:3")


def test_flat_rows_keep_their_other_columns() -> None:
    parsed = supervised_row(row(prompt="p", response="r", answer=4))
    assert (parsed.prompt, parsed.response, parsed.columns) == ("p", "r", {"answer": 4})
    assert prompt_row(row(prompt="p", answer=4)).columns == {"answer": 4}


def test_fields_can_have_other_names() -> None:
    parsed = supervised_row(row(q="p", a="r"), prompt_field="q", response_field="a")
    assert (parsed.prompt, parsed.response, parsed.columns) == ("p", "r", {})


def test_the_last_message_is_the_response() -> None:
    parsed = supervised_row(row(messages=[USER, BAD, USER, GOOD]))
    assert (parsed.prompt, parsed.response) == ([USER, BAD, USER], "good")


def test_nulls_of_a_message_are_absent_keys() -> None:
    assert prompt_row(row(prompt=[{**USER, "name": None, "id": 7}])).prompt == [{**USER, "id": 7}]


def test_as_chat_makes_a_user_turn_of_a_string() -> None:
    assert prompt_row(row(prompt="hi"), as_chat=True).prompt == [USER]


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": [USER], "chosen": "good", "rejected": "bad"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ],
)
def test_every_chat_shape_of_a_preference_reads_the_same(values: dict[str, Any]) -> None:
    parsed = preference_row(row(**values, margin=2))
    assert (parsed.prompt, parsed.chosen, parsed.rejected, parsed.margin) == ([USER], "good", "bad", 2.0)
    assert parsed.columns == {}


def test_margin_is_zero_when_absent() -> None:
    assert preference_row(row(prompt="p", chosen="a", rejected="b")).margin == 0.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": "x", "label": 1}, "no field 'prompt'; the row has 'text', 'label'"),
        (
            {"prompt": 3, "response": "r"},
            "field 'prompt' is a number, expected a string or a list of messages",
        ),
        ({"prompt": None, "response": "r"}, "field 'prompt' is null, expected"),
        ({"prompt": "p"}, "no field 'response'; the row has 'prompt'"),
        ({"prompt": "p", "response": 3.5}, "field 'response' is a number"),
        ({"prompt": "p", "response": ""}, "field 'response' is empty"),
        ({"prompt": [], "response": "r"}, "field 'prompt' is an empty list of messages"),
        ({"prompt": [GOOD], "response": "r"}, "field 'prompt' ends with an assistant turn"),
        ({"messages": "hi"}, "field 'messages' is a str, expected"),
        ({"messages": [USER]}, "field 'messages' ends with a turn of 'user', expected 'assistant'"),
        (
            {"messages": [USER, "x"]},
            "field 'messages', message 1 is a str, expected an object with role and content",
        ),
        ({"messages": [USER, {**GOOD, "content": ""}]}, "ends with an empty assistant turn"),
        ({"messages": [{"role": "user"}, GOOD]}, "message 0 has content = null, expected a string"),
        ({"messages": [USER, {**GOOD, "tool_calls": [1]}]}, "ends with tool_calls"),
        (
            {"messages": [{"role": "human", "content": "x"}, GOOD]},
            "message 0 has the role 'human', known are system, user, assistant, tool",
        ),
    ],
)
def test_malformed_demonstrations_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^f.jsonl:3: .*{message}") as caught:
        supervised_row(row(**values))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chosen": "a", "rejected": "b"}, "no field 'prompt'"),
        ({"prompt": "p", "chosen": "a"}, "no field 'rejected'"),
        ({"prompt": "p", "chosen": "a", "rejected": ""}, "field 'rejected' is empty"),
        ({"prompt": "p", "chosen": "a", "rejected": [BAD]}, "field 'rejected' must be one assistant turn"),
        (
            {"chosen": [USER, GOOD], "rejected": [GOOD, BAD]},
            "field 'rejected' must be one assistant turn, or",
        ),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b", "margin": "1"},
            "field 'margin' is '1', expected a finite",
        ),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": float("nan")}, "field 'margin' is nan"),
    ],
)
def test_malformed_preferences_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^f.jsonl:3: .*{message}"):
        preference_row(row(**values))
