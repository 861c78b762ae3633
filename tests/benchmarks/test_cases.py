"""Every case that starts no other program runs on tiny shapes, and what is ours passes its gate."""

import pytest

from benchmarks.bench import Bench
from benchmarks.suites import CPU, GPU, GROWTH

NAMES = ("C1", "C2", "C3", "C5", "C6", "C8", "C9", "C11", "G4", "G6", "G7", "G8", "G11", "G12")
CASES = {name: {**CPU, **GPU}[name] for name in NAMES}


@pytest.mark.parametrize("name", CASES)
def test_a_case_runs_and_ours_is_right(name: str, bench: Bench) -> None:
    lines = list(CASES[name].run(bench))
    ours = [line for line in lines if line.contender.startswith("rlhf")]
    assert ours
    for line in ours:
        assert (line.void, line.missing) == (None, None)
        assert line.seconds is not None or line.peak_bytes is not None
    missing = [line for line in lines if line.contender.startswith(("trl", "verl", "liger"))]
    assert all(line.missing for line in missing)


@pytest.mark.parametrize("name", ["C7", "C10", "G9", "G10", "growth"])
@pytest.mark.slow
def test_a_case_of_whole_runs_gives_phases_or_steps(name: str, bench: Bench) -> None:
    lines = [
        line
        for line in {**CPU, **GPU, **GROWTH}[name].run(bench)
        if line.target is None and not line.contender.startswith("trl")
    ]
    assert lines
    assert all(line.seconds is not None for line in lines)
