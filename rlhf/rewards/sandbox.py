"""Programs that nobody vouches for, run with their unit tests in a sandbox (docs/sandbox.md)."""

from __future__ import annotations

import enum
import json
import math
import os
import secrets
import struct
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rlhf.rewards.sandbox_trial import DECIDED, NO_VERDICT, TIMED_OUT, UNAVAILABLE

PACKAGES = Path(__file__).parents[2]
START = (
    "import json, sys; sys.path.append(sys.argv[1]); from rlhf.rewards.sandbox_trial import main; "
    "del sys.path[-1]; main(**json.loads(sys.argv[2]))"
)
GRACE = 60.0
"""Seconds beyond the time limit after which the sandbox itself must have failed."""
NEEDS = (
    "it needs Linux 5.14 on x86_64 or aarch64 with user, mount, process, network and IPC namespaces and "
    "seccomp; nothing was run without them (docs/sandbox.md)"
)


class Status(enum.Enum):
    """How a program fared."""

    passed = "passed"
    """Every test."""
    failed = "failed"
    """A test failed, or the program raised or left."""
    timed_out = "timed_out"
    """Nothing within the time limit, or the CPU time was used up."""
    memory = "memory"
    """It raised ``MemoryError``."""
    killed = "killed"
    """A signal ended it."""


@dataclass(kw_only=True, slots=True)
class Limits:
    """What one program may use."""

    seconds: float = 5.0
    """From its start to its last test."""
    cpu_seconds: int = 2
    """CPU time of each of its processes."""
    memory_mib: int = 256
    """Address space of each of its processes."""
    file_kib: int = 1024
    """Largest file, and most that it prints."""
    processes: int = 8
    """Processes and threads that it has at once, the first included."""

    def __post_init__(self) -> None:
        """Refuse limits that leave nothing."""
        for name in ("seconds", "cpu_seconds", "memory_mib", "file_kib", "processes"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"Limits.{name} must be positive, got {value}")


@dataclass(kw_only=True, slots=True)
class Trial:
    """A program and its tests."""

    program: str
    """Python source."""
    tests: Sequence[str]
    """Python source each, which passes by running to its end."""
    entry_point: str | None = None
    """Name that the tests take from the program even where Python has a builtin of that name."""


@dataclass(kw_only=True, slots=True)
class Verdict:
    """What came of a trial."""

    status: Status
    passed: list[bool]
    """Of each test."""
    detail: str
    """What was wrong with the first test that did not pass."""
    output: str
    """The beginning of what was printed."""


def run_trial(trial: Trial, limits: Limits) -> Verdict:
    """Run one program with its tests.

    Raises:
        ValueError: there is no sandbox here, it failed, or the tests cannot be run whatever the program.
    """
    if not trial.tests:
        raise ValueError("a program has no tests to pass")
    nonce = secrets.token_hex(16)
    status, out, err = _ran(_job(trial, nonce), limits)
    if status == UNAVAILABLE:
        raise ValueError(f"no sandbox on this system: {err}; {NEEDS}")
    if status == TIMED_OUT:
        detail = f"no end within {limits.seconds:g} s"
        return _none_passed(Status.timed_out, trial, detail, err)
    if status == DECIDED and out.startswith(nonce):
        verdict = json.loads(out.removeprefix(nonce))
        if "unfit" in verdict:
            raise ValueError(f"the tests cannot be run: {verdict['unfit']}")
        return Verdict(
            status=Status(verdict["status"]),
            passed=verdict["passed"],
            detail=verdict["detail"],
            output=err,
        )
    if status in (DECIDED, NO_VERDICT):
        return _none_passed(Status.killed, trial, "the tests' process ended without a verdict", err)
    raise ValueError(f"the sandbox failed with exit status {status}: {err.strip()[-500:] or 'no message'}")


def run_trials(trials: Sequence[Trial], limits: Limits, *, workers: int | None = None) -> list[Verdict]:
    """Run many, ``workers`` at a time; None takes the CPU cores that this process may use.

    Raises:
        ValueError: as ``run_trial``, for the first trial in the list that raises.
    """
    pool = ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)))
    try:
        return list(pool.map(partial(run_trial, limits=limits), trials))
    finally:
        pool.shutdown(cancel_futures=True)


def _job(trial: Trial, nonce: str) -> bytes:
    """The program with its length, then what its process must not see."""
    program = trial.program.encode("utf-8", "surrogatepass")
    secret = {"nonce": nonce, "tests": list(trial.tests), "entry_point": trial.entry_point}
    return struct.pack("<Q", len(program)) + program + json.dumps(secret).encode()


def _ran(job: bytes, limits: Limits) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the warden, in an empty environment and a session of its own."""
    settings = {
        "seconds": limits.seconds,
        "cpu_seconds": limits.cpu_seconds,
        "memory_mib": limits.memory_mib,
        "file_kib": limits.file_kib,
        "processes": limits.processes,
    }
    command = [sys.executable, "-I", "-S", "-X", "utf8", "-c", START, str(PACKAGES), json.dumps(settings)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={},
        cwd="/",
        start_new_session=True,
    ) as warden:
        try:
            out, err = warden.communicate(job, timeout=limits.seconds + GRACE)
        except subprocess.TimeoutExpired:
            raise ValueError(f"the sandbox gave no answer within {limits.seconds + GRACE:g} s") from None
        finally:
            warden.kill()  # with it the kernel ends whatever it has started
    return warden.returncode, out.decode(errors="replace"), err.decode(errors="replace")


def _none_passed(status: Status, trial: Trial, detail: str, output: str) -> Verdict:
    return Verdict(status=status, passed=[False] * len(trial.tests), detail=detail, output=output)
