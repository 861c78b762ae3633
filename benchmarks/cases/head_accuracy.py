"""C12: errors of log-probs, entropies, dX and dW against float64, where other kernels went wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from benchmarks.bench import Bench, dtype_name
from benchmarks.contest import Contender, describe
from benchmarks.head.contenders import OURS, HeadCell, naive, ours, torch_native
from benchmarks.head.problem import HeadProblem, make_problem
from benchmarks.peers.client import PeerError
from benchmarks.results import Line, at_most, say

PEERS = ("trl functions", "trl chunked", "verl fused", "liger scaled", "cut-cross-entropy")
SHAPE = (200, 96, 5003)
"""A vocabulary that no block size divides."""
TIED = 1.01
"""Errors this near are one error: the same rounding of the same logits."""


def run(bench: Bench) -> Iterator[Line]:
    """Every cell in both dtypes; nothing is timed."""
    failures = 0
    for dtype in (torch.float32, torch.bfloat16):
        for name, make in CELLS.items():
            cell = HeadCell(bench, make(dtype, bench.device))
            title = f"{name} {dtype_name(dtype)}"
            lines = [_errors(title, each) for each in _contenders(cell)]
            yield from lines
            failures += lines[0].void is not None
            yield from _compare(title, lines, dtype, cell.truth.largest)
    yield at_most("all", "cells in which ours is wrong", float(failures), 0.0)


def _contenders(cell: HeadCell) -> list[Contender]:
    return [
        cell.token(OURS, ours, "backward"),
        cell.token("naive", naive, "backward"),
        cell.token("torch native", torch_native, "backward", entropy=False),
        *(cell.peer(peer, "backward") for peer in PEERS),
    ]


def _errors(title: str, contender: Contender) -> Line:
    line = Line(cell=title, contender=contender.name, note=contender.note, missing=contender.missing)
    if contender.check is not None:
        try:
            verdict = contender.check()
        except (PeerError, NotImplementedError) as error:
            line.missing = str(error)
        else:
            line.errors, line.void = verdict.errors, verdict.fault
            line.values = {f"{name} error": size for name, size in verdict.errors.items()}
    say(f"  {title:28s} {describe(line)}")
    return line


def _compare(title: str, lines: list[Line], dtype: torch.dtype, largest: float) -> Iterator[Line]:
    """Our error over the best other's.

    No error is smaller than a few float32 roundings of the largest logit, in either dtype, nor that of a
    gradient than the rounding of its own dtype.
    """
    least = 4 * torch.finfo(torch.float32).eps * max(largest, 1.0)
    for name, own in lines[0].errors.items():
        others = [line.errors[name] for line in lines[1:] if name in line.errors]
        rounding = least if name in ("logprobs", "entropies") else max(least, torch.finfo(dtype).eps)
        yield at_most(title, f"{name} error over the best other's", own / max(min(others), rounding), TIED)


def _peaked(dtype: torch.dtype, device: torch.device) -> HeadProblem:
    return make_problem(SHAPE, dtype, device=device)


def _flat(dtype: torch.dtype, device: torch.device) -> HeadProblem:
    return make_problem(SHAPE, dtype, entropy=None, device=device)


def _shifted(level: float) -> Callable[[torch.dtype, torch.device], HeadProblem]:
    """All logits near ``level``: a feature that is 1 in every row, with that weight in every column."""

    def make(dtype: torch.dtype, device: torch.device) -> HeadProblem:
        problem = _flat(dtype, device)
        problem.hidden[:, -1], problem.weight[:, -1] = 1.0, level
        return problem

    return make


def _scaled(largest: float) -> Callable[[torch.dtype, torch.device], HeadProblem]:
    """Logits up to ±``largest``."""

    def make(dtype: torch.dtype, device: torch.device) -> HeadProblem:
        problem = _flat(dtype, device)
        top = float((problem.hidden.float() @ problem.weight.float().t()).abs().max())
        problem.hidden = (problem.hidden.float() * (largest / top)).to(dtype)
        return problem

    return make


def _certain(dtype: torch.dtype, device: torch.device) -> HeadProblem:
    return make_problem(SHAPE, dtype, entropy=0.01, device=device)


def _with(
    temperature: float = 1.0, softcap: float | None = None
) -> Callable[[torch.dtype, torch.device], HeadProblem]:
    def make(dtype: torch.dtype, device: torch.device) -> HeadProblem:
        return replace(_peaked(dtype, device), temperature=temperature, softcap=softcap)

    return make


CELLS = {
    "peaked": _peaked,
    "flat": _flat,
    "near certain": _certain,
    "all near -80": _shifted(-80.0),
    "all near -1000": _shifted(-1000.0),
    "up to ±80": _scaled(80.0),
    "softcap 30": _with(softcap=30.0),
    "temperature 0.3": _with(temperature=0.3),
    "temperature 2": _with(temperature=2.0),
}
