"""Registration with Hydra, and from what it composed to dataclasses."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from rlhf.config.groups import GROUPS

T = TypeVar("T")

CONF = "rlhf.conf"
"""The package that holds the YAML files: ``conf/`` of the checkout."""


def register(schemas: dict[str, type]) -> None:
    """Tell Hydra every component, and each command's schema under NAME_schema."""
    store = ConfigStore.instance()
    for name, schema in schemas.items():
        store.store(name=f"{name}_schema", node=schema)
    for group, options in GROUPS.items():
        for name, component in options.items():
            store.store(group=group, name=name, node=component)


def build(raw: DictConfig, schema: type[T]) -> T:
    """The composed configuration as dataclasses, every ``__post_init__`` run.

    Raises:
        ValueError: mandatory values are missing, all of them named at once; keys were added or deleted; a
            value is out of range.
    """
    if added := _differences(raw, added=True):
        raise ValueError(f"unknown key {added[0]}: no field of that name where it was added")
    if deleted := _differences(raw, added=False):
        raise ValueError(f"key {deleted[0]} was deleted; give it a value instead")
    missing = sorted(OmegaConf.missing_keys(raw))
    if missing:
        raise ValueError(f"these have no value yet: {', '.join(missing)}; give each as KEY=VALUE")
    built = OmegaConf.to_object(raw)
    if not isinstance(built, schema):
        raise TypeError(f"the configuration is a {type(built).__name__}, not a {schema.__name__}")
    return built


def _differences(node: DictConfig, *, added: bool, prefix: str = "") -> list[str]:
    """Dotted keys that were added to the dataclasses' fields, or else deleted from them."""
    component = OmegaConf.get_type(node)
    if component is None:
        return []
    own = set(node)
    known = own if not is_dataclass(component) else {item.name for item in fields(component)}  # else a dict
    found = [prefix + str(key) for key in sorted(own - known if added else known - own)]
    for key in sorted(own & known):
        child = None if OmegaConf.is_missing(node, key) else node[key]
        if isinstance(child, DictConfig):
            found += _differences(child, added=added, prefix=f"{prefix}{key}.")
    return found
