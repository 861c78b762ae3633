"""C9: rows into forward passes under a limit of tokens, and over ranks: how full, how even, how fast."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.bench import Bench
from benchmarks.cases.rows import lognormal
from benchmarks.cases.tensor_contenders import Tensors, there
from benchmarks.contest import Contender, Outcome, Verdict, contest
from benchmarks.measure import timed
from benchmarks.results import Line, at_least, at_most
from rlhf.trainers.micro_batches import Cut, dealt

Groups = list[list[int]]

ROWS, LONGEST, LIMIT, RANKS = 4096, 2048, 16_384, 8
KARP = "verl karmarkar-karp"


def run(bench: Bench) -> Iterator[Line]:
    """4096 lognormal lengths; passes of 16384 tokens, then the shares of all eight ranks."""
    rows, longest, limit = bench.size((ROWS, LONGEST, LIMIT), (64, 64, 256))
    lengths = lognormal(rows, longest, torch.Generator().manual_seed(0))
    sizes: list[int] = lengths.tolist()
    cut = Cut(rows=rows, tokens=limit, packed=True)
    passes = {
        "rlhf": lambda: [part.tolist() for part in cut(lengths)],
        "sequential": lambda: sequential(sizes, limit),
        "first fit decreasing": lambda: first_fit_decreasing(sizes, limit),
    }
    count = -(-sum(sizes) // limit)  # as verl chooses it
    cell = f"{rows} rows, passes of {limit} tokens"
    yield from _compare(bench, cell, lengths, passes, count=count, limit=limit)
    shares = {
        "rlhf": lambda: [dealt(sizes, rank, RANKS) for rank in range(RANKS)],
        "sequential": lambda: [list(part) for part in torch.arange(rows).chunk(RANKS)],
    }
    cell = f"{rows} rows over {RANKS} ranks, equally many on each"
    each = {"rlhf": lambda: dealt(sizes, 0, RANKS)}  # every rank asks for its own, at the same time
    yield from _compare(bench, cell, lengths, shares, count=RANKS, limit=None, timed_instead=each)


def sequential(sizes: list[int], limit: int) -> Groups:
    """A new group where the next row no longer fits."""
    found: Groups = [[]]
    load = 0
    for row, size in enumerate(sizes):
        if load + size > limit:
            found.append([])
            load = 0
        found[-1].append(row)
        load += size
    return found


def first_fit_decreasing(sizes: list[int], limit: int) -> Groups:
    """The longest row left goes to the first group that has room (Johnson 1973)."""
    found: Groups = []
    room: list[int] = []
    for row in sorted(range(len(sizes)), key=lambda row: -sizes[row]):
        for group, left in enumerate(room):
            if sizes[row] <= left:
                found[group].append(row)
                room[group] -= sizes[row]
                break
        else:
            found.append([row])
            room.append(limit - sizes[row])
    return found


def quality(lengths: Tensor, group: Tensor, limit: int | None) -> dict[str, float]:
    """Share of the groups' room that is used, and the largest load over the mean one.

    Args:
        lengths: (rows,) tokens.
        group: (rows,) number of each row's group.
        limit: tokens of a group; a larger load counts as the room of all. None where there is no limit.
    """
    loads = torch.zeros(int(group.max()) + 1, dtype=torch.float64).index_add_(0, group, lengths.double())
    found = {"groups": float(len(loads)), "max/mean load": float(loads.max() / loads.mean())}
    if limit is not None:
        found["fill"] = float(loads.sum()) / (len(loads) * max(float(limit), float(loads.max())))
        found["over the limit"] = float((loads > limit).sum())
    return found


def numbers(groups: Groups, rows: int) -> Tensor:
    """(rows,) the group of each row; −1 for a row in none, −2 for one in several."""
    found = torch.full((rows,), -1)
    for number, members in enumerate(groups):
        for row in members:
            found[row] = number if found[row] == -1 else -2
    return found


def _compare(
    bench: Bench,
    cell: str,
    lengths: Tensor,
    ways: dict[str, Callable[[], Groups]],
    *,
    count: int,
    limit: int | None,
    timed_instead: Mapping[str, Callable[[], object]] | None = None,
) -> Iterator[Line]:
    found: dict[str, dict[str, float]] = {}

    def judge(result: Tensors, name: str) -> Verdict:
        """Every row is in one group."""
        group = result["group"]
        lost = float((group < 0).sum())
        if not lost:
            found[name] = quality(lengths, group, limit)
        return Verdict(errors={"rows": lost}, fault=f"{lost:.0f} rows lost or twice" if lost else None)

    def check(name: str, way: Callable[[], Groups]) -> Verdict:
        return judge({"group": numbers(way(), len(lengths))}, name)

    contenders = [
        Contender(
            name=name,
            check=partial(check, name, way),
            seconds=partial(timed, (timed_instead or {}).get(name, way), bench.device),
        )
        for name, way in ways.items()
    ]
    given = {"lengths": lengths, "count": count, "equal": limit is None}
    contenders.append(there(bench, KARP, given, {}, once=True, judge=partial(judge, name=KARP)))
    outcome = contest(
        replace(bench, budget=min(bench.budget, 10.0), least=min(bench.least, 2)), cell, contenders
    )
    for line in outcome.lines:
        line.values |= found.get(line.contender, {})
    yield from outcome.lines
    yield from _wanted(outcome, cell)


def _wanted(outcome: Outcome, cell: str) -> Iterator[Line]:
    values = outcome.line("rlhf").values
    if "fill" in values:
        yield at_least(cell, "fill", values["fill"], 0.98)
    yield at_most(cell, "largest load over the mean", values.get("max/mean load"), 1.02)
    yield at_least(cell, "times verl's speed", outcome.ratio(KARP, "rlhf"), 5.0)
