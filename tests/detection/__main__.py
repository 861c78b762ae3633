"""Detection power (numerics 3.2): break the product on purpose, see where E1 ends and which tests fail.

    python -m tests.detection                          every mutation, some minutes
    python -m tests.detection --no-training "γ = 0.9"  the tests of one

It prints a row for each mutation and exits with 1 if one survives: if a test passes that must fail, if E1
ends near π* where it must not, or if anything fails without a mutation. Each mutation has a process of its
own, forked when torch is imported and the product is not.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import math
import multiprocessing
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
import transformers

from tests.detection.breaking import install
from tests.detection.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parents[2]
NEAR, FAR = 1e-3, 2e-3
"""Nats from π*: where E1 ends without a mutation, at most, and with one that it must notice, at least."""


@dataclass(eq=False)  # pytest wants its plugins hashable
class Outcome:
    """The tests that ran and failed, without their parameters."""

    ran: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("[")[0]
        self.ran.add(name)
        if report.failed:
            self.failed.add(name)


@dataclass
class Finding:
    """Where E1 ended, if it was run, and what the tests said."""

    distance: float | None
    outcome: Outcome


def examine(mutation: Mutation, tests: Sequence[str], training: bool) -> Finding:
    """Train and test under a mutation, in a process that has not imported the product."""
    install(mutation.edits)
    distance = trained(mutation) if training else None
    outcome = Outcome()
    nodes = [str(ROOT / test) for test in tests]
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        pytest.main(["-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", *nodes], plugins=[outcome])
    return Finding(distance, outcome)


def trained(mutation: Mutation) -> float:
    """KL(π‖π*) at the end of E1 (numerics 2.4); ∞ where the trainer itself notices and stops."""
    table = importlib.import_module("tests.testbed.table")
    bed = importlib.import_module("tests.testbed.tree").Testbed()
    algorithm = table.RECIPES[mutation.recipe]()
    if mutation.offset:
        algorithm.missing_eos_score += mutation.offset
    trainer = table.trainer(bed, algorithm, updates=600, offset=mutation.offset)
    try:
        return table.distance_after(bed, trainer)
    except (FloatingPointError, ValueError):
        return math.inf


def in_a_fork(mutation: Mutation, tests: Sequence[str], training: bool) -> Finding:
    """:func:`examine` in a fork of this process, which stays as it is."""

    def send(pipe: Connection) -> None:
        pipe.send(examine(mutation, tests, training))

    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=send, args=(sender,))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(f"{mutation.name}: the process died without an answer") from None
    finally:
        process.join()


def verdict(mutation: Mutation, finding: Finding) -> list[str]:
    """What should have failed and did not; of the product as it is, what should not have."""
    distance = finding.distance
    if not mutation.edits:
        wrong = sorted(finding.outcome.failed)
        return [*wrong, *(["E1"] if distance is not None and distance > NEAR else [])]
    survived = [test for test in mutation.red if test not in finding.outcome.failed]
    if mutation.noticed and distance is not None and distance <= FAR:
        survived.append("E1")
    return survived


def row(mutation: Mutation, finding: Finding) -> str:
    """The mutation's row of the table."""
    names = [test.rpartition("::")[2] for test in sorted(finding.outcome.failed)]
    if finding.distance is not None and finding.distance > FAR:
        names.insert(0, "E1")
    distance = "" if finding.distance is None else f"{finding.distance:.2g}"
    if finding.distance == math.inf:
        distance = "stopped"
    return f"| {mutation.name} | {distance} | {', '.join(names) or '–'} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.detection")
    parser.add_argument("names", nargs="*", metavar="MUTATION", help="some of them; all when none is given")
    parser.add_argument("--no-training", action="store_true", help="run the tests, not E1")
    given = parser.parse_args(arguments)
    unknown = set(given.names) - {mutation.name for mutation in MUTATIONS}
    if unknown:
        parser.error(f"no such mutation: {', '.join(sorted(unknown))}")
    chosen = [mutation for mutation in MUTATIONS if not given.names or mutation.name in given.names]
    every = sorted({test for mutation in chosen for test in mutation.red})
    torch.set_num_threads(1)
    sys.stdout.write("| mutation | KL(π‖π*) | red |\n|---|---|---|\n")
    survivors = []
    for mutation in [Mutation("none", (), tuple(every), recipe="ppo"), *chosen]:
        finding = in_a_fork(mutation, mutation.red, not given.no_training)
        missing = set(mutation.red) - finding.outcome.ran
        if missing:
            raise ValueError(f"{mutation.name}: these tests do not exist: {', '.join(sorted(missing))}")
        sys.stdout.write(row(mutation, finding) + "\n")
        sys.stdout.flush()
        survivors += [f"{mutation.name}: {test}" for test in verdict(mutation, finding)]
    for survivor in survivors:
        sys.stderr.write(f"not as it must be: {survivor}\n")
    return 1 if survivors else 0


if __name__ == "__main__":
    # The classes of transformers are imported lazily; here once for all forks.
    assert transformers.AutoModelForCausalLM is not None
    sys.exit(main())
