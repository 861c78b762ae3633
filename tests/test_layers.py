"""The import directions of the layers, read from the import statements (also those inside functions)."""

from __future__ import annotations

import ast
import configparser
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "rlhf").rglob("*.py"))

LEAVES = {
    "batch",
    "metrics",
    "progress_bar",
    "recipes",
    "seeding",
    "run_folder",
    "ops",
    "distributed",
    "tensor_file",
}
LAYERS = {
    "algorithms": {"batch", "ops"},
    "data": {"batch"},
    "kernels": {"ops"},
    "distributed": {"tensor_file"},
    "models": {"batch", "ops", "kernels", "tensor_file"},
    "rewards": {"batch", "data", "models"},
    "rollout": {"batch", "kernels", "models", "rewards", "seeding"},
    "trainers": {*LEAVES, "algorithms", "data", "models", "rewards", "rollout"},
    "evaluation": {*LEAVES, "data", "models", "rewards", "rollout"},
    "config": {"algorithms", "data", "distributed", "models", "rewards", "rollout", "trainers"},
    "planning": {*LEAVES, "config", "data", "kernels", "models", "rewards", "rollout", "trainers"},
    "cli": {*LEAVES, "config", "data", "evaluation", "models", "planning", "rewards", "rollout", "trainers"},
    "__main__": {"cli"},
}
"""What of rlhf each layer may import besides itself; a leaf imports nothing of it."""

CONFINED = {
    "transformers": {"models", "data"},
    "triton": {"kernels"},
    "tokenizers": {"data"},
    "datasets": {"data"},
    "pyarrow": {"data"},
    "hydra": {"config", "cli"},
    "omegaconf": {"config", "cli"},
    "deepspeed": {"distributed"},
    "torch.distributed": {"distributed"},
    "matplotlib": {"evaluation"},
}
"""Packages, and the only layers that may import them."""

TORCH_ONLY = ("batch", "ops", "algorithms", "seeding")


@dataclass(frozen=True)
class Import:
    """One import statement."""

    file: Path
    line: int
    name: str
    """Dotted, with what is imported from the module as its last part."""
    for_types: bool
    """Under ``if TYPE_CHECKING``, so that it never runs."""
    inside_function: bool

    @property
    def layer(self) -> str:
        return self.file.relative_to(ROOT / "rlhf").parts[0].removesuffix(".py")

    @property
    def of_rlhf(self) -> str | None:
        """The layer that is imported."""
        first, _, rest = self.name.partition(".")
        return rest.partition(".")[0] if first == "rlhf" else None

    def within(self, package: str) -> bool:
        return f"{self.name}.".startswith(f"{package}.")

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.name}"


def imports_of(file: Path, source: str) -> Iterator[Import]:
    tree = ast.parse(source)
    guards, functions = [], []
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            guards += node.body
        elif isinstance(node, ast.FunctionDef):
            functions += node.body
    for_types, inside = (
        {id(node) for part in parts for node in ast.walk(part)} for parts in (guards, functions)
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield Import(file, node.lineno, name, id(node) in for_types, id(node) in inside)


IMPORTS = [found for file in FILES for found in imports_of(file, file.read_text(encoding="utf-8"))]


def complaints(wrong: Iterator[Import]) -> list[str]:
    return [str(found) for found in wrong]


def test_imports_are_found_wherever_they_stand() -> None:
    source = "import a.b as c\ndef f():\n    from d import e, g\nif TYPE_CHECKING:\n    import h\n"
    found = {each.name: (each.for_types, each.inside_function) for each in imports_of(FILES[0], source)}
    assert found == {"a.b": (False, False), "d.e": (False, True), "d.g": (False, True), "h": (True, False)}


def test_every_layer_has_its_rule() -> None:
    present = {file.relative_to(ROOT / "rlhf").parts[0].removesuffix(".py") for file in FILES}
    assert present - {"__init__"} == LEAVES | set(LAYERS)


def test_layers_import_only_what_lies_below() -> None:
    wrong = (
        found
        for found in IMPORTS
        if found.of_rlhf not in (None, found.layer) and found.of_rlhf not in LAYERS.get(found.layer, set())
    )
    assert complaints(wrong) == []


def test_layers_have_no_cycle() -> None:
    remaining = {layer: set(below) for layer, below in LAYERS.items()} | {leaf: set() for leaf in LEAVES}
    while free := {layer for layer, below in remaining.items() if not below & remaining.keys()}:
        for layer in free:
            del remaining[layer]
    assert remaining == {}


@pytest.mark.parametrize("package", CONFINED)
def test_package_stays_in_its_layers(package: str) -> None:
    """What only a type checker reads is allowed to commands and their plans, which hand tokenizers about."""
    wrong = (
        found
        for found in IMPORTS
        if found.within(package)
        and found.layer not in CONFINED[package]
        and not (found.layer in ("cli", "planning") and found.for_types)
    )
    assert complaints(wrong) == []


def test_pure_layers_import_torch_only() -> None:
    wrong = (
        found
        for found in IMPORTS
        if found.layer in TORCH_ONLY
        and found.of_rlhf is None
        and found.name.partition(".")[0] not in {"torch", *sys.stdlib_module_names}
    )
    assert complaints(wrong) == []


@pytest.mark.parametrize("package", ["deepspeed", "datasets", "matplotlib", "pyarrow"])
def test_heavy_package_is_imported_inside_functions(package: str) -> None:
    """So that ``--help`` and the tests of the maths never wait for it."""
    wrong = (found for found in IMPORTS if found.within(package) and not found.inside_function)
    assert complaints(wrong) == []


def test_packages_in_setup_cfg_are_those_of_the_tree() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = setup["options"]["packages"].split()
    folders = (file.parent.relative_to(ROOT) for file in FILES if file.name == "__init__.py")
    assert listed == sorted({".".join(folder.parts) for folder in folders} | {"rlhf.conf"})


def test_every_folder_of_modules_is_a_package() -> None:
    assert [file for file in FILES if not (file.parent / "__init__.py").exists()] == []
