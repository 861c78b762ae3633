"""Responses that are programs: right where they pass the unit tests of the prompt's row."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from rlhf.rewards.sandbox import Limits, Trial, Verdict, run_trials
from rlhf.rewards.verifiers import Verifier, column

FENCED = re.compile(r"^```[^\n`]*\n(.*?)(?:^```|\Z)", re.DOTALL | re.MULTILINE)
"""A block between fences; one that is cut off ends with the response."""


@dataclass(kw_only=True, slots=True)
class UnitTests(Verifier):
    """The program in the response passes the row's tests, run in a sandbox (docs/sandbox.md)."""

    tests: str = "tests"
    """Column with the tests: Python source, or a list of those; one passes by running to its end."""
    entry_point: str = "entry_point"
    """Column, where there is one, with the name that the tests call: it is the program's, never a builtin."""
    with_prompt: bool = False
    """The program is the prompt and the response in one, as where a model completes code."""
    fraction: bool = False
    """The share of the row's tests that pass in place of 1 for all of them and 0 otherwise."""
    cpu_seconds: int = 2
    """CPU time that each process of a program may use."""
    memory_mib: int = 256
    """Address space that each process of a program may have."""
    file_kib: int = 1024
    """Largest file that a program may write, and most that it may print."""
    processes: int = 8
    """Processes and threads that a program may have at once, the first included."""
    workers: int | None = None
    """Programs that run at a time; null takes the CPU cores that this process may use."""

    def __post_init__(self) -> None:
        """Refuse limits that leave nothing."""
        Verifier.__post_init__(self)
        for name in ("cpu_seconds", "memory_mib", "file_kib", "processes", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"UnitTests.{name} must be at least 1, got {value}")

    def __call__(
        self, prompts: list[str], responses: list[str], columns: list[dict[str, Any]]
    ) -> list[float]:
        """One score a response, in [0, 1]; one that takes longer than ``timeout_seconds`` has 0.

        Raises:
            ValueError: a row has no tests or some that cannot be run, or there is no sandbox here.
        """
        return [self._score(verdict) for verdict in self.verdicts(prompts, responses, columns)]

    def verify(self, prompt: str, response: str, row: dict[str, Any]) -> float:
        """The score of one response."""
        (score,) = self([prompt], [response], [row])
        return score

    def verdicts(
        self, prompts: list[str], responses: list[str], columns: list[dict[str, Any]]
    ) -> list[Verdict]:
        """What came of each response.

        Raises:
            ValueError: as above.
        """
        limits = Limits(
            seconds=self.timeout_seconds,
            cpu_seconds=self.cpu_seconds,
            memory_mib=self.memory_mib,
            file_kib=self.file_kib,
            processes=self.processes,
        )
        cases = zip(prompts, responses, columns, strict=True)
        return run_trials([self._trial(*case) for case in cases], limits, workers=self.workers)

    def _trial(self, prompt: str, response: str, row: dict[str, Any]) -> Trial:
        program = prompt + response if self.with_prompt else code_in(response)
        entry_point = row.get(self.entry_point)
        if not isinstance(entry_point, str | None):
            raise ValueError(f"the row's column {self.entry_point!r} must be a name, got {entry_point!r}")
        return Trial(program=program, tests=_tests(row, self.tests), entry_point=entry_point)

    def _score(self, verdict: Verdict) -> float:
        if self.fraction:
            return sum(verdict.passed) / len(verdict.passed)
        return float(all(verdict.passed))


def code_in(response: str) -> str:
    """The first fenced block of a response, or the whole where nothing is fenced."""
    found = FENCED.search(response)
    return found[1] if found else response


def _tests(row: dict[str, Any], name: str) -> list[str]:
    """The row's tests.

    Raises:
        ValueError: the column is absent, empty, or holds something else than text.
    """
    found = column(row, name)
    tests = found if isinstance(found, list) else [found]
    if not tests or not all(isinstance(test, str) and test.strip() for test in tests):
        raise ValueError(f"the row's column {name!r} must be Python source or a list of it, got {found!r}")
    return tests
