"""Reference and reward model: ordinary wrappers that no longer learn."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def frozen(model: M) -> M:
    """The same module in eval mode and without gradients: a reference policy, a fixed reward model."""
    return model.requires_grad_(False).eval()
