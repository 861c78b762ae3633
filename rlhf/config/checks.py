"""What several schemas refuse."""

from __future__ import annotations


def expect_positive(config: object, *names: str) -> None:
    """Refuse fields of ``config`` that are zero or negative.

    Raises:
        ValueError: one is; it names component, field and value.
    """
    for name in names:
        if getattr(config, name) <= 0:
            raise ValueError(f"{type(config).__name__}.{name} must be positive, got {getattr(config, name)}")
