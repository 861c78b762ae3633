"""C12: errors of log-probs, entropies, dX and dW against float64, where other kernels went wrong."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from benchmarks.bench import Bench, dtype_name
from benchmarks.contest import Contender, Verdict, describe
from benchmarks.head.contenders import OURS, HeadCell, naive, our_logprobs, ours, torch_native
from benchmarks.head.problem import HeadProblem, make_problem
from benchmarks.peers.client import PeerError
from benchmarks.results import Line, at_most, say

PEERS = ("trl functions", "trl chunked", "verl fused", "liger scaled", "cut-cross-entropy")
SHAPE = (200, 96, 5003)
"""A vocabulary that no block size divides."""
ROWS, GRADIENTS = ("logprobs", "entropies"), ("hidden", "weight")
LARGEST, MEAN = "error", "mean error"
ALONE = f"{OURS} without entropies"
"""Its gradients are held against those of functions that have none either."""
PROBLEMS = 5
"""A cell's: where few rows have a gradient, the error of one problem is what those few happen to be."""
TIED = 1.01
"""Errors this near are one error: the same rounding of the same logits."""


def run(bench: Bench) -> Iterator[Line]:
    """Every cell in both dtypes; nothing is timed."""
    failures = 0
    for dtype in (torch.float32, torch.bfloat16):
        for name, make in CELLS.items():
            cells = (HeadCell(bench, make(dtype, bench.device, seed)) for seed in range(PROBLEMS))
            judged = [(cell.truth.largest, [_judged(each) for each in _contenders(cell)]) for cell in cells]
            title = f"{name} {dtype_name(dtype)}"
            lines = [_together(title, same) for same in zip(*(each for _, each in judged), strict=True)]
            yield from lines
            failures += sum(line.void is not None for line in lines[:2])
            yield from compare(lines, dtype, max(largest for largest, _ in judged))
    yield at_most("all", "cells in which ours is wrong", float(failures), 0.0)


def _contenders(cell: HeadCell) -> list[Contender]:
    return [
        cell.token(OURS, ours, "backward"),
        cell.token(ALONE, our_logprobs, "backward", entropy=False),
        cell.token("naive", naive, "backward"),
        cell.token("torch native", torch_native, "backward", entropy=False),
        *(cell.peer(peer, "backward") for peer in PEERS),
    ]


def _judged(contender: Contender) -> tuple[Contender, Verdict | None]:
    """With what the gate says; without, where it cannot do the problem."""
    if contender.check is None:
        return contender, None
    try:
        return contender, contender.check()
    except (PeerError, NotImplementedError) as error:
        return replace(contender, missing=str(error)), None


def _together(title: str, same: Sequence[tuple[Contender, Verdict | None]]) -> Line:
    """The line of one contender, over all problems."""
    contender = same[0][0]
    line = Line(cell=title, contender=contender.name, note=contender.note, missing=contender.missing)
    verdicts = [verdict for _, verdict in same if verdict is not None]
    line.void = next((verdict.fault for verdict in verdicts if verdict.fault is not None), None)
    for name in verdicts[0].errors if verdicts else ():
        line.errors[name] = max(verdict.errors[name] for verdict in verdicts)
        squares = [verdict.mean_errors[name] ** 2 for verdict in verdicts]
        line.values |= {
            f"{name} {LARGEST}": line.errors[name],
            f"{name} {MEAN}": math.sqrt(sum(squares) / len(squares)),
        }
    say(f"  {title:28s} {describe(line)}")
    return line


def compare(lines: list[Line], dtype: torch.dtype, largest: float) -> Iterator[Line]:
    """Our errors, the largest and the root mean square, over the best other's of the same output.

    The largest is a matter of luck among right kernels: none counts as smaller than a few float32 roundings
    of the largest logit, nor, of a gradient, than one rounding of its dtype. The mean has no such allowance
    but what two roundings come to in a gradient's dtype, of d loss / d logits and of the result.
    """
    (ours, alone), others = lines[:2], lines[2:]
    with_entropies = [line for line in others if f"entropies {LARGEST}" in line.values]
    without = [line for line in others if line not in with_entropies]
    held = [(ours, name, others) for name in ROWS]
    held += [(ours, name, with_entropies) for name in GRADIENTS]
    held += [(alone, name, without) for name in GRADIENTS]
    for kind, (own, name, rivals) in itertools.product((LARGEST, MEAN), held):
        key = f"{name} {kind}"
        best = min((line.values[key] for line in rivals if key in line.values), default=None)
        if best is not None and key in own.values:
            what = f"{key} over the best other's" + (", without entropies" if own is alone else "")
            least = _allowance(name, kind, dtype, largest)
            yield at_most(own.cell, what, own.values[key] / max(best, least), TIED)


def _allowance(name: str, kind: str, dtype: torch.dtype, largest: float) -> float:
    """What counts as no error."""
    rounding = torch.finfo(dtype).eps if name in GRADIENTS else 0.0
    if kind == MEAN:
        return rounding / math.sqrt(6)
    return max(4 * torch.finfo(torch.float32).eps * max(largest, 1.0), rounding)


class Make(Protocol):
    """Makes one of a cell's problems."""

    def __call__(self, dtype: torch.dtype, device: torch.device, seed: int) -> HeadProblem:
        """That of the seed."""


def _drawn(entropy: float | None) -> Make:
    """As `make_problem` draws them."""

    def make(dtype: torch.dtype, device: torch.device, seed: int) -> HeadProblem:
        return make_problem(SHAPE, dtype, entropy=entropy, device=device, seed=seed)

    return make


def _shifted(level: float) -> Make:
    """All logits near ``level``: a feature that is 1 in every row, with that weight in every column."""

    def make(dtype: torch.dtype, device: torch.device, seed: int) -> HeadProblem:
        problem = _drawn(None)(dtype, device, seed)
        problem.hidden[:, -1], problem.weight[:, -1] = 1.0, level
        return problem

    return make


def _scaled(largest: float) -> Make:
    """Logits up to ±``largest``."""

    def make(dtype: torch.dtype, device: torch.device, seed: int) -> HeadProblem:
        problem = _drawn(None)(dtype, device, seed)
        top = float((problem.hidden.float() @ problem.weight.float().t()).abs().max())
        problem.hidden = (problem.hidden.float() * (largest / top)).to(dtype)
        return problem

    return make


def _with(temperature: float = 1.0, softcap: float | None = None) -> Make:
    def make(dtype: torch.dtype, device: torch.device, seed: int) -> HeadProblem:
        problem = _drawn(1.0)(dtype, device, seed)
        return replace(problem, temperature=temperature, softcap=softcap)

    return make


CELLS = {
    "peaked": _drawn(1.0),
    "flat": _drawn(None),
    "near certain": _drawn(0.01),
    "all near -80": _shifted(-80.0),
    "all near -1000": _shifted(-1000.0),
    "up to ±80": _scaled(80.0),
    "softcap 30": _with(softcap=30.0),
    "temperature 0.3": _with(temperature=0.3),
    "temperature 2": _with(temperature=2.0),
}
