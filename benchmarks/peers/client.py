"""The peers' own environment, seen from ours: one process of it, asked line by line."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / "build" / "peers" / "bin" / "python"
"""Made by benchmarks/peers.sh."""


class PeerError(Exception):
    """A peer raised; the first line says what."""


class PeerEnvironment:
    """Starts its process at the first question. Without the environment every peer is missing."""

    def __init__(
        self, python: Path = PYTHON, *, device: str = "cpu", threads: int = 1, patience: float = 900.0
    ) -> None:
        self._python, self._device, self._threads = python, device, threads
        self._patience = patience  # seconds of one answer
        self._process: subprocess.Popen[str] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="benchmarks-")
        self._known: dict[str, str | None] = {}

    def missing(self, name: str) -> str | None:
        """Why the peer cannot run here; None where it can."""
        if not self._python.exists():
            return "no environment of peers; bash benchmarks/peers.sh makes it"
        if name not in self._known:
            try:
                self._known[name] = self.ask("find", name=name)["missing"]
            except PeerError as error:
                self._known[name] = str(error)
        return self._known[name]

    def ask(self, question: str, **arguments: Any) -> dict[str, Any]:
        """One question, one answer.

        Raises:
            PeerError: the peer raised, its process ended, or it took too long and was ended.
        """
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"do": question, **arguments}) + "\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], self._patience)
            if not ready:
                process.kill()
                self._process = None
                raise PeerError(f"no answer to {question} in {self._patience:.0f} s")
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process = None
            said = self.path("peers.log").read_text().strip().splitlines()
            raise PeerError(
                f"the peers' process ended at {question}: {said[-1] if said else 'without a word'}"
            )
        found: dict[str, Any] = json.loads(answer)
        if "error" in found:
            raise PeerError(found["error"])
        return found

    def give(self, problem: Any) -> None:
        """Hand over a problem with ``save``; later questions are about it."""
        path = self.path("problem.pt")
        problem.save(path)
        self.ask("load", path=str(path))

    def results(self, question: str, **arguments: Any) -> dict[str, torch.Tensor]:
        """Tensors that a question leads to."""
        path = self.path("results.pt")
        self.ask(question, path=str(path), **arguments)
        return torch.load(path, weights_only=True)

    def path(self, name: str) -> Path:
        """A file that both processes can read."""
        return Path(self._folder.name) / name

    def close(self) -> None:
        """End the process and remove the files."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(timeout=30)
            self._process = None
        self._folder.cleanup()

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            settings = {"OMP_NUM_THREADS": str(self._threads), "PYTHONPATH": str(ROOT)}
            if self._device == "cpu":
                settings["DS_ACCELERATOR"] = "cpu"
            self._process = subprocess.Popen(
                [str(self._python), "-m", "benchmarks.peers.worker", self._device, str(self._threads)],
                cwd=ROOT,
                env={**os.environ, **settings},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.path("peers.log").open("w"),
                text=True,
            )
        return self._process
