"""Cutting rows into forward passes. Every rank makes the same number of them: ZeRO-3 gathers in each."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from rlhf.distributed.collectives import all_max
from rlhf.distributed.engine import Engine


def exact_div(numerator: int, denominator: int, what: str, by: str) -> int:
    """``numerator / denominator``, refused when it leaves a remainder.

    Raises:
        ValueError: names both sizes.
    """
    if denominator < 1 or numerator % denominator or numerator < 1:
        raise ValueError(f"{what}={numerator} cannot be shared out equally over {by}={denominator}")
    return numerator // denominator


@dataclass(kw_only=True, slots=True)
class Cut:
    """Which rows of this rank share a forward and backward pass."""

    rows: int
    """Rows of a pass."""
    tokens: int | None = None
    """Tokens of a pass, in place of rows; a longer row is alone in one."""
    packed: bool = False
    """Rows run end to end: a pass computes the sum of their lengths, else their number times the longest."""

    @classmethod
    def shared(cls, rows: int, tokens: int | None, ranks: int, *, packed: bool) -> Self:
        """From sizes over all ranks together.

        Raises:
            ValueError: they cannot be shared out equally.
        """
        return cls(
            rows=exact_div(rows, ranks, "micro_batch_size", "ranks"),
            tokens=None if tokens is None else exact_div(tokens, ranks, "micro_batch_tokens", "ranks"),
            packed=packed,
        )

    def __call__(self, lengths: Tensor, group: Tensor | None = None) -> tuple[Tensor, ...]:
        """Row indices of each pass, none empty, equally many passes on every rank.

        It depends on lengths and groups alone: the same rows are cut in the same way (numerics D15). Where
        tokens are counted, all ranks call it together, with equally many rows. Packed rows of a group stay
        in one pass, which runs what they have in common once (`rlhf.models.beginnings`).

        Args:
            lengths: (B,) int64 tokens of each row.
            group: (B,) int64 which rows begin alike; None for none.
        """
        if self.tokens is None:
            order = torch.arange(len(lengths)) if self.packed else lengths.argsort(stable=True).cpu()
            return order.split(self.rows)
        sizes: list[int] = lengths.tolist()
        limit = max(self.tokens, *sizes)
        if not self.packed:
            return _tensors(alike(sizes, _agreed(len(_within(sizes, limit)))))
        units = together(sizes, limit, None if group is None else group.tolist())
        count = _agreed(needed([sum(sizes[row] for row in unit) for unit in units], limit))
        if count > len(units):
            units = [[row] for row in range(len(sizes))]
        found = level([sum(sizes[row] for row in unit) for unit in units], count)
        return _tensors([sorted(row for unit in part for row in units[unit]) for part in found])


def _agreed(count: int) -> int:
    """The most passes that a rank needs; at most the number of rows, which all ranks share."""
    return int(all_max(torch.tensor(count)))


def _tensors(groups: list[list[int]]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(group) for group in groups)


def together(sizes: list[int], limit: int, group: list[int] | None) -> list[list[int]]:
    """Rows that go into one pass: those of a group whose sum is within the limit, else each by itself."""
    members: dict[int, list[int]] = {}
    for row, number in enumerate(range(len(sizes)) if group is None else group):
        members.setdefault(number, []).append(row)
    found: list[list[int]] = []
    for rows in members.values():
        found += [rows] if sum(sizes[row] for row in rows) <= limit else [[row] for row in rows]
    return found


def cut_for(engine: Engine, rows: int, tokens: int | None, ranks: int) -> Cut:
    """The cut for a model in the layout that it runs in; sizes are over all ranks.

    Raises:
        ValueError: they cannot be shared out equally.
    """
    return Cut.shared(rows, tokens, ranks, packed=bool(engine.module.packed))


def needed(sizes: list[int], limit: int) -> int:
    """Groups that :func:`level` needs so that no sum exceeds ``limit``, itself no less than a size."""
    count = max(-(-sum(sizes) // limit), 1)
    while max(sum(sizes[row] for row in group) for group in level(sizes, count)) > limit:
        count += 1
    return count


def level(sizes: list[int], count: int) -> list[list[int]]:
    """``count`` groups of rows with nearly the same sum: the longest row left goes to the lightest group.

    Graham 1969, longest processing time first: the largest sum is at most 4/3 of the smallest possible.
    """
    loads = [(0, 0, group) for group in range(count)]  # sum, rows, group
    found: list[list[int]] = [[] for _ in range(count)]
    for row in sorted(range(len(sizes)), key=lambda row: -sizes[row]):
        total, rows, group = heapq.heappop(loads)
        found[group].append(row)
        heapq.heappush(loads, (total + sizes[row], rows + 1, group))
    return [sorted(group) for group in found]


def dealt(sizes: list[int], rank: int, ranks: int) -> list[int]:
    """The rows of one rank: equally many on each, their sums nearly the same; in their own order.

    The longest row left goes to the lightest rank that has room.

    Raises:
        ValueError: the ranks would get unequal numbers of rows.
    """
    room = exact_div(len(sizes), ranks, "rows", "ranks")
    loads = [(0, number) for number in range(ranks)]  # sum, rank
    found: list[list[int]] = [[] for _ in range(ranks)]
    for row in sorted(range(len(sizes)), key=lambda row: -sizes[row]):
        total, lightest = heapq.heappop(loads)
        found[lightest].append(row)
        if len(found[lightest]) < room:
            heapq.heappush(loads, (total + sizes[row], lightest))
    return sorted(found[rank])


def alike(sizes: list[int], count: int) -> list[list[int]]:
    """``count`` groups of neighbours in length; the largest product of rows and longest is a smallest one."""
    low, high = max(sizes), len(sizes) * max(sizes)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_within(sizes, middle)) <= count else (middle + 1, high)
    found = _within(sizes, low)
    while len(found) < count:
        longest = max(found, key=len)
        found.remove(longest)
        found += [longest[: len(longest) // 2], longest[len(longest) // 2 :]]
    return found


def _within(sizes: list[int], limit: int) -> list[list[int]]:
    """Rows, longest first, in as few groups as keep rows × longest within the limit."""
    found: list[list[int]] = [[]]
    for row in sorted(range(len(sizes)), key=lambda row: -sizes[row]):
        if found[-1] and (len(found[-1]) + 1) * sizes[found[-1][0]] > limit:
            found.append([])
        found[-1].append(row)
    return found


def held_out(rows: int, size: int, rank: int, world_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's rows of a whole data set, in equally many groups on every rank.

    Yields:
        index (b,): rows; the last group repeats row 0 where a rank has run out.
        real (b,): bool, False on such a repetition.
    """
    share = torch.arange(rows)[rank::world_size]  # empty where there are fewer rows than ranks
    longest = -(-rows // world_size)
    filled = torch.cat([share, torch.zeros(longest - len(share), dtype=torch.int64)])
    real = torch.arange(longest) < len(share)
    yield from zip(filled.split(size), real.split(size), strict=True)
