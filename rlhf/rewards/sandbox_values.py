"""How values cross from the program's process to the tests' and back: as data, never as behaviour."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

MOST_ITEMS = 10_000
"""Items of an iterator that cross."""

SEQUENCES: dict[str, type[Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset, "list": list}


def encoded(value: Any, refer: Callable[[Any], int]) -> Any:
    """A value as JSON: plain data by content, everything else by the number that ``refer`` gives it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, dict):
        return {"dict": [[encoded(key, refer), encoded(item, refer)] for key, item in value.items()]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    for name, kind in SEQUENCES.items():
        if isinstance(value, kind):
            return {name: [encoded(item, refer) for item in value]}
    if isinstance(value, Iterator):
        return {"iterator": [encoded(item, refer) for item in islice(value, MOST_ITEMS)]}
    return {"object": refer(value)}


def decoded(data: Any, find: Callable[[int], Any]) -> Any:
    """The value that ``encoded`` wrote, built of builtin types alone.

    Raises:
        ValueError: nothing that ``encoded`` writes.
    """
    if not isinstance(data, dict):
        if isinstance(data, list):
            raise ValueError("a bare list")
        return data
    ((kind, content),) = data.items()
    if kind in SEQUENCES:
        return SEQUENCES[kind](decoded(item, find) for item in content)
    if kind == "dict":
        return {decoded(key, find): decoded(item, find) for key, item in content}
    if kind == "iterator":
        return iter([decoded(item, find) for item in content])
    plain: dict[str, Callable[[], Any]] = {
        "complex": lambda: complex(*content),
        "bytes": lambda: bytes.fromhex(content),
        "range": lambda: range(*content),
        "object": lambda: find(content),
    }
    return plain[kind]()
