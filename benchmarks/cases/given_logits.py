"""G4: log-prob and entropy from logits that are there already; bytes a second beside those of a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.accuracy import errors, fault, tolerance
from benchmarks.bench import Bench, dtype_name
from benchmarks.contest import Contender, Verdict, contest
from benchmarks.head.problem import sampled
from benchmarks.measure import peak_extra, timed
from benchmarks.results import Line, at_least
from rlhf.kernels.row_logprobs import row_logprobs
from rlhf.ops.logprobs import logprobs_and_entropies

Found = dict[str, Tensor]
RowFunction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def run(bench: Bench) -> Iterator[Line]:
    """Row kernels against a copy of the logits and against plain torch, forward and backward."""
    M, V = bench.size((8192, 151_936), (64, 1003))
    logits = torch.randn(M, V, device=bench.device, dtype=torch.bfloat16) * 3
    targets = torch.randint(0, V, (M,), device=bench.device)
    g, h = torch.randn(2, M, device=bench.device)

    def backward(
        function: RowFunction, rows: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Found:
        given = _taken(logits, rows).to(dtype or logits.dtype).detach().requires_grad_()
        upstream = [_taken(each, rows).to(dtype or torch.float32) for each in (g, h)]
        (gradient,) = torch.autograd.grad(list(function(given, _taken(targets, rows))), given, upstream)
        return {"gradient": gradient}

    @torch.no_grad()
    def forward(function: RowFunction, rows: Tensor | None = None, dtype: torch.dtype | None = None) -> Found:
        given = _taken(logits, rows).to(dtype or logits.dtype)
        found = function(given, _taken(targets, rows))
        return dict(zip(("logprobs", "entropies"), found, strict=True))

    room = torch.empty_like(logits)
    for name, work, passes in (("forward", forward, 1), ("backward", backward, 4)):
        cell = f"{name} {M}×{V} {dtype_name(logits.dtype)}"
        rows = sampled(M).to(bench.device)
        right = work(logprobs_and_entropies, rows, torch.float64)
        contenders = [
            Contender(name="floor: copy", seconds=lambda: timed(lambda: room.copy_(logits), bench.device)),
            _contender(bench, "rlhf", partial(work, row_logprobs), rows, right),
            _contender(bench, "naive", partial(work, logprobs_and_entropies), rows, right),
        ]
        outcome = contest(bench, cell, contenders)
        for line in outcome.lines:
            if line.seconds is not None:
                moved = (2 if line.contender.startswith("floor") else passes) * logits.nbytes
                line.values["GB/s"] = moved / line.seconds / 1e9
        yield from outcome.lines
        speed, ceiling = (outcome.line(who).values.get("GB/s") for who in ("rlhf", "floor: copy"))
        share = speed / ceiling if speed is not None and ceiling is not None else None
        yield at_least(cell, "share of a copy's bytes a second", share, 0.9)


def _taken(values: Tensor, rows: Tensor | None) -> Tensor:
    return values if rows is None else values[rows]


def _contender(bench: Bench, name: str, work: Callable[[], Found], rows: Tensor, right: Found) -> Contender:
    def check() -> Verdict:
        sizes = errors({part: values[rows] for part, values in work().items()}, right)
        return Verdict(errors=sizes, fault=fault(sizes, tolerance(torch.bfloat16, 1.0)))

    return Contender(
        name=name,
        check=check,
        seconds=lambda: timed(work, bench.device),
        peak=lambda: peak_extra(work, bench.device),
    )
