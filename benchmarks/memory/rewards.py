"""A reward that takes no memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def length(prompts: Sequence[str], responses: Sequence[str], columns: Any) -> list[float]:
    """Shorter is better."""
    return [-len(response) / 100 for response in responses]
