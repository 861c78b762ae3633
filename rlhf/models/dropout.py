"""Dropout is zero in all models by construction, so that ``train()`` changes no number (numerics D14)."""

from __future__ import annotations

from typing import Any

from torch import nn


def zero_dropout_config(config: Any) -> None:
    """Set every dropout rate of a transformers configuration, nested ones included, to 0."""
    for name in config.sub_configs:
        if getattr(config, name, None) is not None:
            zero_dropout_config(getattr(config, name))
    for name, value in list(vars(config).items()):
        if _is_rate(name, value):
            setattr(config, name, 0.0)


def zero_dropout(model: nn.Module) -> None:
    """Set every dropout rate that a module keeps to 0, be it a layer's or a plain attribute."""
    for module in model.modules():
        for name in _rates(module):
            setattr(module, name, 0.0)


def dropout_left(model: nn.Module) -> list[str]:
    """Names of the modules that still drop something."""
    return [
        f"{name or type(model).__name__}.{rate}"
        for name, module in model.named_modules()
        for rate in _rates(module)
        if getattr(module, rate) != 0.0
    ]


def _rates(module: nn.Module) -> list[str]:
    names = [name for name, value in vars(module).items() if _is_rate(name, value)]
    return [*names, "p"] if isinstance(module, nn.modules.dropout._DropoutNd) else names


def _is_rate(name: str, value: object) -> bool:
    """``attn_pdrop``, ``hidden_dropout_prob``, ``layerdrop`` …; not a switch or a list."""
    return "drop" in name and isinstance(value, float | int) and not isinstance(value, bool)
