"""Runs in the peers' environment, which has no rlhf: ``python -m benchmarks.peers.worker DEVICE THREADS``.

A JSON object a line comes in, one goes out. Whatever the peers print goes to standard error.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.head import tasks
from benchmarks.head.problem import HeadProblem
from benchmarks.measure import peak_extra, timed
from benchmarks.peers import functions
from benchmarks.peers.head import PEERS, HeadPeer


class Worker:
    """Answers; holds the problem that was loaded last."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._problem: HeadProblem | None = None

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """One object for one object."""
        do: Callable[..., dict[str, Any]] = getattr(self, question.pop("do"))
        return do(**question)

    def find(self, name: str) -> dict[str, Any]:
        """Whether a peer can be imported."""
        if name not in PEERS and name not in functions.FUNCTIONS:
            return {"missing": "no such peer is called"}
        try:
            (PEERS[name].make if name in PEERS else functions.FUNCTIONS[name].make)()
        except Exception as error:
            return {"missing": f"{type(error).__name__}: {first_line(error)}"}
        return {"missing": None}

    def load(self, path: str) -> dict[str, Any]:
        """A problem of the head."""
        self._problem = None
        gc.collect()
        self._problem = HeadProblem.load(Path(path)).to(self._device)
        return {}

    def head(self, name: str, task: str, entropy_gradient: bool, path: str) -> dict[str, Any]:
        """Results of a peer of the head, for the gate."""
        torch.save(tasks.compared(self._work(name, task, entropy_gradient)()), path)
        return {}

    def head_seconds(self, name: str, task: str, entropy_gradient: bool) -> dict[str, Any]:
        """One timed run."""
        return {"seconds": timed(self._work(name, task, entropy_gradient), self._device)}

    def head_peak(self, name: str, task: str, entropy_gradient: bool) -> dict[str, Any]:
        """One run's memory."""
        gc.collect()
        return {"peak": peak_extra(self._work(name, task, entropy_gradient), self._device)}

    def call(self, name: str, arguments: str, path: str) -> dict[str, Any]:
        """A function of tensors: results for the gate, and the seconds of this run."""
        function = functions.FUNCTIONS[name].make()
        given = torch.load(arguments, weights_only=True)
        results: dict[str, torch.Tensor] = {}
        seconds = timed(lambda: results.update(function(given)), self._device)
        own, peak = results.pop("seconds", None), results.pop("peak", None)
        torch.save(results, path)
        found: dict[str, Any] = {"seconds": seconds if own is None else float(own)}
        return found if peak is None else found | {"peak": int(peak)}

    def _work(self, name: str, task: str, entropy_gradient: bool) -> Callable[[], tasks.Outputs]:
        assert self._problem is not None
        peer: HeadPeer = PEERS[name]
        if task == "loss":
            return partial(tasks.loss, peer.make(), self._problem)
        if task == "forward":
            return partial(tasks.forward, peer.make(), self._problem)
        return partial(tasks.backward, peer.make(), self._problem, entropy_gradient=entropy_gradient)


def first_line(error: Exception) -> str:
    """Short enough for a line."""
    return next(iter(str(error).splitlines()), "")[:200]


def main() -> None:
    """Read, answer, until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(int(sys.argv[2]))
    worker = Worker(torch.device(sys.argv[1]))
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {first_line(error)}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
