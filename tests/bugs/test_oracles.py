"""Bugs of other frameworks' tests: maths that nothing tests, tests that run another loss than they name."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
Calls = dict[str, dict[str, list[str]]]
"""Test → the functions it ran and the components it was given; see tests/bugs/calls.py."""


def modules(package: str) -> list[ModuleType]:
    files = sorted((ROOT / "rlhf" / package).glob("[!_]*.py"))
    return [importlib.import_module(f"rlhf.{package}.{file.stem}") for file in files]


def own(module: ModuleType, kind: Any) -> Iterator[Any]:
    """Public functions or classes that the module itself defines."""
    for name, thing in inspect.getmembers(module, kind):
        if thing.__module__ == module.__name__ and not name.startswith("_"):
            yield thing


def called(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def methods(component: type) -> set[str]:
    """What can be called on a component, each under the class that defines it."""
    found = set()
    for name in dir(component):
        method = inspect.getattr_static(component, name)
        method = method.fget if isinstance(method, property) else method
        if inspect.isfunction(method) and (name == "__call__" or not name.startswith("_")):
            found.add(called(method))
    return found


def components(module: ModuleType) -> list[type]:
    """Concrete classes of the module that do something."""
    return [x for x in own(module, inspect.isclass) if methods(x) and not inspect.isabstract(x)]


OPS, ALGORITHMS = modules("ops"), modules("algorithms")


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Calls:
    """One recorded run of the tests of the maths, and of its regressions."""
    out = tmp_path_factory.mktemp("calls") / "calls.json"
    tests = ["tests/ops", "tests/algorithms", "tests/bugs/test_algorithms.py"]
    tests += ["--ignore=tests/algorithms/test_fixed_points.py"]  # the same components, thousands of steps
    command = [sys.executable, "-m", "tests.bugs.calls", str(out), "-q", *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert out.is_file(), done.stdout + done.stderr
    return json.loads(out.read_text(encoding="utf-8"))


def inside(calls: Calls, folder: str) -> set[str]:
    """Everything that the tests of a folder ran."""
    return {name for test, record in calls.items() if test.startswith(folder) for name in record["ran"]}


@pytest.mark.parametrize("module", OPS, ids=lambda module: module.__name__)
def test_every_op_has_a_closed_form_test(module: ModuleType, calls: Calls) -> None:
    """Run under tests/ops; that what runs it would notice a change, launch/mutation.sh shows."""
    assert {called(op) for op in own(module, inspect.isfunction)} - inside(calls, "tests/ops/") == set()


@pytest.mark.parametrize("module", ALGORITHMS, ids=lambda module: module.__name__)
def test_every_component_is_run_by_a_test(module: ModuleType, calls: Calls) -> None:
    ran = inside(calls, "tests/algorithms/")
    assert [called(part) for part in components(module) if not methods(part) & ran] == []


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def named(test: str, names: dict[str, set[str]]) -> list[tuple[str, set[str]]]:
    """The longest of the names that the test's own begins with, if any, and what running it calls."""
    fitting = [name for name in names if re.search(rf"::test_{name}(_|\[|$)", test)]
    return [(name, names[name]) for name in sorted(fitting, key=len)[-1:]]


def test_each_loss_test_selects_its_loss(calls: Calls) -> None:
    """A test that is given a component, or that is named after one or after an op, runs that one."""
    parts = [part for module in ALGORITHMS for part in components(module)]
    given = {called(part): methods(part) for part in parts}
    names = {
        "tests/ops/": {op.__name__: {called(op)} for module in OPS for op in own(module, inspect.isfunction)},
        "tests/algorithms/": {snake(part.__name__): methods(part) for part in parts},
    }
    wrong, looked = [], 0
    for test, record in calls.items():
        claims = [(part, given[part]) for part in record["given"] if part in given]
        for folder, runs in names.items():
            claims += named(test, runs) if test.startswith(folder) else []
        looked += bool(claims)
        wrong += [f"{test} does not run {name}" for name, runs in claims if not runs & set(record["ran"])]
    assert wrong == []
    assert looked > 100
