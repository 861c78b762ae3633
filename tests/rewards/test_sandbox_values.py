"""What crosses between program and tests is data of builtin types."""

from __future__ import annotations

import enum
import json
from collections import Counter, OrderedDict, namedtuple
from typing import Any

import pytest

from rlhf.rewards.sandbox_values import MOST_ITEMS, decoded, encoded


def crossed(value: Any) -> Any:
    def refuse(_: Any) -> int:
        raise AssertionError("plain data needs no reference")

    return decoded(json.loads(json.dumps(encoded(value, refuse))), refuse)


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 0, -(10**40), 1.5, float("inf"), "", "é\n\ud800", b"\x00\xff", 2 - 3j),
        *([], (), set(), {}, frozenset(), range(1, 9, 2), [1, [2, (3,)]], {(1, 2): {"a"}, None: [b""]}),
    ],
)
def test_plain_data_arrives_as_it_was(value: Any) -> None:
    found = crossed(value)
    assert found == value
    assert type(found) is type(value)


def test_an_order_of_keys_arrives() -> None:
    assert list(crossed({"b": 1, "a": 2})) == ["b", "a"]


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(a=1), {"a": 1}),
        (namedtuple("Point", "x y")(1, 2), (1, 2)),
        (enum.IntEnum("Colour", "RED")["RED"], 1),
        (type("Text", (str,), {"__eq__": lambda *_: True, "__hash__": str.__hash__})("a"), "a"),
    ],
)
def test_a_subclass_arrives_as_its_builtin(value: Any, plain: Any) -> None:
    assert type(crossed(value)) is type(plain)
    assert crossed(value) == plain


def test_an_iterator_arrives_as_one_and_ends() -> None:
    def forever() -> Any:
        while True:
            yield 1

    assert list(crossed(iter([1, 2]))) == [1, 2]
    assert len(list(crossed(forever()))) == MOST_ITEMS


def test_anything_else_is_a_reference() -> None:
    kept: list[Any] = []

    def refer(value: Any) -> int:
        kept.append(value)
        return 7

    assert encoded([object, 1], refer) == {"list": [{"object": 7}, 1]}
    assert kept == [object]
    assert decoded({"list": [{"object": 7}]}, {7: "found"}.__getitem__) == ["found"]


@pytest.mark.parametrize(
    "data", [[1], {}, {"list": 1}, {"code": "1"}, {"set": [{"list": []}]}, {"a": 1, "b": 2}]
)
def test_what_nobody_encoded_is_refused(data: Any) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        decoded(data, lambda number: number)
