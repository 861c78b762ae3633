"""The progress bar of every command: steps, rate, time left."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress(total: int, *, label: str | None = None, done: int = 0, shown: bool = True) -> Any:
    """A bar on stderr with the time left; where that is no terminal, a line every ten seconds.

    Args:
        total: steps in all.
        label: what stands before the bar.
        done: steps done before.
        shown: False on ranks that print nothing.
    """
    return tqdm(
        total=total,
        initial=done,
        desc=label,
        disable=not shown,
        file=sys.stderr,
        dynamic_ncols=True,
        mininterval=0.2 if sys.stderr.isatty() else 10.0,
    )
