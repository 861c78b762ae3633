"""Which functions of the maths each test really runs: ``python -m tests.bugs.calls OUT.json ARGUMENTS…``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

MATHS = ("rlhf.ops.", "rlhf.algorithms.")


class Calls:
    """By test: the functions that it ran, and the classes of the components among its parameters."""

    def __init__(self) -> None:
        self.tests: dict[str, dict[str, list[str]]] = {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item: pytest.Function) -> Iterator[None]:
        ran: set[str] = set()

        def enter(frame: FrameType, event: str, argument: Any) -> None:
            module = frame.f_globals.get("__name__", "")
            if module.startswith(MATHS):
                ran.add(f"{module}.{frame.f_code.co_qualname}")

        before = sys.gettrace()
        sys.settrace(enter)
        yield
        sys.settrace(before)
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        given = {f"{type(x).__module__}.{type(x).__qualname__}" for x in flat(parameters)}
        components = sorted(name for name in given if name.startswith(MATHS))
        self.tests[item.nodeid] = {"ran": sorted(ran), "given": components}


def flat(values: Any) -> Iterator[Any]:
    """The values, and what tuples and lists among them hold."""
    for value in values:
        if isinstance(value, tuple | list):
            yield from flat(value)
        else:
            yield value


if __name__ == "__main__":
    calls = Calls()
    status = pytest.main(sys.argv[2:], plugins=[calls])
    Path(sys.argv[1]).write_text(json.dumps(calls.tests), encoding="utf-8")
    sys.exit(status)
