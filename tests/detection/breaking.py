"""Product modules with an edit in their source, made while they are imported; the files stay as they are."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType


@dataclass(frozen=True)
class Edit:
    """One wrong piece of source in the place of the right one."""

    module: str
    right: str
    wrong: str


class Breaker(MetaPathFinder):
    """Finds the edited modules; all others are for the finders after it."""

    def __init__(self, edits: Sequence[Edit]) -> None:
        self.edits = edits

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        edits = [edit for edit in self.edits if edit.module == name]
        if not edits:
            return None
        spec = PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = Broken(name, spec.origin, edits)
        return spec


class Broken(SourceFileLoader):
    """A module's source with its edits; each must fit in exactly one place."""

    def __init__(self, name: str, path: str, edits: Sequence[Edit]) -> None:
        super().__init__(name, path)
        self.edits = edits

    def get_code(self, fullname: str) -> CodeType:
        source = self.get_data(self.path).decode()
        for edit in self.edits:
            if source.count(edit.right) != 1:
                raise ValueError(
                    f"{fullname} holds {source.count(edit.right)} times, expected 1: {edit.right}"
                )
            source = source.replace(edit.right, edit.wrong)
        return compile(source, self.path, "exec")


def install(edits: Sequence[Edit]) -> None:
    """Break what is imported from now on.

    Raises:
        ValueError: a module to be edited was imported already.
    """
    early = [edit.module for edit in edits if edit.module in sys.modules]
    if early:
        raise ValueError(f"{', '.join(early)} was imported before it could be edited")
    sys.meta_path.insert(0, Breaker(edits))
