"""What Hydra knows of a command: its configuration, its groups and their options, its keys."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, OmegaConf

from rlhf.config import CONF, GROUPS


@contextmanager
def _only_ours() -> Iterator[None]:
    """Hydra with our configuration alone, also inside a job that Hydra runs."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_module(CONF, version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


def compose(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """A command's configuration under the given overrides."""
    with _only_ours():
        return hydra.compose(config_name=name, overrides=list(overrides))


def choices(name: str, overrides: Sequence[str] = ()) -> dict[str, str | None]:
    """The option that each group of a command stands at, e.g. ``{"algorithm/kl": "in_reward"}``."""
    with _only_ours():
        raw = hydra.compose(config_name=name, overrides=list(overrides), return_hydra_config=True)
        chosen = raw.hydra.runtime.choices
    return {group: chosen[group] for group in sorted(chosen) if group in groups()}


def groups() -> list[str]:
    """Every group that an option can be chosen from, ``algorithm/kl`` before ``algorithm``."""
    return sorted([*GROUPS, "experiment", "recipe"], reverse=True)


def options(group: str, raw: DictConfig | None = None) -> list[str]:
    """The options of a group, those in its folders included; its bare schema is no choice.

    With a command's configuration ``raw`` only those that the command takes: commands share groups.
    """
    with _only_ours():
        loader = GlobalHydra.instance().config_loader()
        names, folders = (
            loader.get_group_options(group, kind) for kind in (ObjectType.CONFIG, ObjectType.GROUP)
        )
    nested = [folder for folder in folders if f"{group}/{folder}" not in GROUPS]
    names = [name for name in names if name != "schema"]
    names += [f"{folder}/{name}" for folder in nested for name in options(f"{group}/{folder}")]
    return names if raw is None else [name for name in names if _fits(group, name, raw)]


def _fits(group: str, name: str, raw: DictConfig) -> bool:
    """Whether the field that the group fills can hold the option; a preset is taken to."""
    component: Any = GROUPS.get(group, {}).get(name)
    if component is None:
        return True
    node: Any = raw
    for part in group.split("/"):
        node = node._get_node(part)
    wanted = node._metadata.ref_type
    return not isinstance(wanted, type) or issubclass(component, wanted)


def keys(raw: DictConfig) -> list[str]:
    """Every key of a composed configuration, dotted."""
    return _keys(OmegaConf.to_container(raw, resolve=False), "")


def _keys(tree: Any, prefix: str) -> list[str]:
    if not isinstance(tree, dict):
        return []
    return [
        key for name, branch in tree.items() for key in (prefix + name, *_keys(branch, f"{prefix}{name}."))
    ]


def nearest(word: str, known: list[str]) -> str:
    """«; did you mean X?», or nothing when no name is near."""
    own = f"{word.replace('/', '.')}."
    known = [name for name in known if not own.startswith(f"{name.replace('/', '.')}.")]  # nor a parent
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not close or "." not in word:  # the last part may be right and stand elsewhere
        close = [key for key in known if key.split(".")[-1] == word.rsplit(".", maxsplit=1)[-1]][:1] or close
    return f"; did you mean {close[0]}?" if close else ""
