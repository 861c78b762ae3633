"""``--help``: every key of a command, its value and what it means, taken from the schema."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import fields, is_dataclass
from itertools import pairwise
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rlhf.cli.composition import choices, compose, options

COMMENT_COLUMN = 46


def describe(name: str, overrides: list[str]) -> str:
    """The help text of ``rlhf NAME``, under the given overrides."""
    raw = compose(name, overrides)
    head = f"usage: rlhf {name} key=value …   (a Hydra application: --cfg job, --multirun, --info)\n"
    groups = [f"  {group}={'|'.join(options(group, raw))}" for group in choices(name, overrides)]
    return "\n".join([head, "Choices:", *groups, "", "Keys:", *_lines(raw, 1), ""])


def _lines(node: DictConfig, depth: int) -> list[str]:
    schema = OmegaConf.get_type(node)
    meanings = documentation(schema) if schema not in (dict, None) else {}
    lines: list[str] = []
    for key in map(str, node):
        child = None if OmegaConf.is_missing(node, key) else node._get_node(key)
        nested = isinstance(child, DictConfig) and child._content is not None and not child._is_none()
        value = "" if nested else _shown(node, key)
        lines.append(_line(f"{'  ' * depth}{key}:{value}", meanings.get(key, "")))
        if nested:
            assert isinstance(child, DictConfig)
            lines += _lines(child, depth + 1)
    return lines


def _shown(node: DictConfig, key: str) -> str:
    if OmegaConf.is_missing(node, key):
        return " ???"
    value: Any = OmegaConf.to_container(node, resolve=False, enum_to_str=True)[key]  # type: ignore[call-overload,index]
    return " null" if value is None else f" {value}".replace("\n", "\\n")  # a key is a line


def _line(left: str, meaning: str) -> str:
    return f"{left:<{COMMENT_COLUMN}} # {meaning}" if meaning else left


def documentation(component: type) -> dict[str, str]:
    """The docstring literal under each field of a dataclass, inherited ones included."""
    documented: dict[str, str] = {}
    for cls in reversed(component.__mro__):
        if is_dataclass(cls):
            documented |= _literals(cls)
    return {item.name: documented.get(item.name, "") for item in fields(component)}


def _literals(cls: type) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = tree.body[0].body  # type: ignore[attr-defined]
    return {
        before.target.id: " ".join(after.value.value.split())
        for before, after in pairwise(body)
        if isinstance(before, ast.AnnAssign)
        and isinstance(before.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
    }
