"""``--help``: every key of a command, its value and what it means, taken from the schema."""

from __future__ import annotations

from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from rlhf.config import GROUPS, documentation

COMMENT_COLUMN = 46


def describe(name: str, overrides: list[str], conf: str) -> str:
    """The help text of ``rlhf NAME``, under the given overrides."""
    with hydra.initialize_config_module(conf.removeprefix("pkg://"), version_base="1.3"):
        raw = hydra.compose(config_name=name, overrides=overrides)
        loader = hydra.core.global_hydra.GlobalHydra.instance().config_loader()
        used = [group for group in GROUPS if group.split("/")[0] in raw]
        options = {group: loader.get_group_options(group) for group in [*used, "experiment"]}
    head = f"usage: rlhf {name} key=value …   (a Hydra application: --cfg job, --multirun, --info)\n"
    groups = [f"  {group}={'|'.join(o for o in names if o != 'schema')}" for group, names in options.items()]
    return "\n".join([head, "Choices:", *groups, "", "Keys:", *_lines(raw, 1), ""])


def _lines(node: DictConfig, depth: int) -> list[str]:
    schema = OmegaConf.get_type(node)
    meanings = documentation(schema) if schema not in (dict, None) else {}
    lines: list[str] = []
    for key in node:
        child = None if OmegaConf.is_missing(node, key) else node._get_node(key)
        nested = isinstance(child, DictConfig) and child._content is not None and not child._is_none()
        value = "" if nested else _shown(node, str(key))
        lines.append(_line(f"{'  ' * depth}{key}:{value}", meanings.get(str(key), "")))
        if nested:
            assert isinstance(child, DictConfig)
            lines += _lines(child, depth + 1)
    return lines


def _shown(node: DictConfig, key: str) -> str:
    if OmegaConf.is_missing(node, key):
        return " ???"
    value: Any = OmegaConf.to_container(node, resolve=False, enum_to_str=True)[key]  # type: ignore[call-overload,index]
    return f" {'null' if value is None else value}"


def _line(left: str, meaning: str) -> str:
    return f"{left:<{COMMENT_COLUMN}} # {meaning}" if meaning else left
