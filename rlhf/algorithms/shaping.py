"""What is added to a score before it becomes a reward."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rlhf.ops.shaping import overlong_penalty


@dataclass(kw_only=True, slots=True)
class SoftOverlong:
    """DAPO: a score falls by 1, linearly, over the last tokens before the length limit (numerics D29)."""

    limit: int
    """The longest response, in tokens."""
    buffer: float = 0.2
    """Share of the limit over which the score falls, above 0 and at most 1."""

    def __post_init__(self) -> None:
        """Refuse a fall without room.

        Raises:
            ValueError: limit is not positive, or buffer lies outside (0, 1].
        """
        if self.limit < 1:
            raise ValueError(f"SoftOverlong.limit must be at least 1, got {self.limit}")
        if not 0 < self.buffer <= 1:
            raise ValueError(f"SoftOverlong.buffer must be above 0 and at most 1, got {self.buffer}")

    def __call__(self, lengths: Tensor) -> Tensor:
        """(B,) from −1 to 0, to be added to the scores; see `rlhf.ops.shaping.overlong_penalty`."""
        return overlong_penalty(lengths, limit=self.limit, buffer=self.buffer * self.limit)
