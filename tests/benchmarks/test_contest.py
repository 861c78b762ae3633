"""Void and missing contenders are said, and never timed."""

import pytest
import torch

from benchmarks.bench import Bench
from benchmarks.contest import Contender, Verdict, contest, describe
from benchmarks.head.contenders import HeadCell
from benchmarks.head.problem import make_problem
from benchmarks.results import at_least, at_most


def never() -> float:
    raise AssertionError("timed all the same")


def right() -> Verdict:
    return Verdict(errors={"logprobs": 1e-6}, fault=None)


def wrong() -> Verdict:
    return Verdict(errors={"logprobs": 3.0}, fault="logprobs off by 3, allowed 0.1")


def raising() -> Verdict:
    raise RuntimeError("no kernel for this dtype\nand a long trace")


def test_a_wrong_result_is_void_and_never_timed(bench: Bench) -> None:
    outcome = contest(
        bench,
        "cell",
        [
            Contender(name="a", seconds=lambda: 1.0, check=right),
            Contender(name="b", seconds=never, check=wrong),
        ],
    )
    line = outcome.line("b")
    assert line.void == "logprobs off by 3, allowed 0.1"
    assert line.seconds is None
    assert "void: logprobs off by 3" in describe(line)
    assert outcome.ratio("a", "b") is None
    assert outcome.line("a").seconds == 1.0


def test_what_raises_in_a_later_round_is_missing_and_the_others_go_on(bench: Bench) -> None:
    left = [1.0]

    def fails_once_more() -> float:
        if not left:
            raise RuntimeError("out of memory")
        return left.pop()

    contenders = [
        Contender(name="a", seconds=fails_once_more, check=right),
        Contender(name="b", seconds=lambda: 2.0, check=right),
    ]
    outcome = contest(bench, "cell", contenders)
    assert outcome.line("a").missing == "failed: out of memory"
    assert outcome.line("a").seconds is None
    assert outcome.line("b").seconds == 2.0
    assert outcome.ratio("a", "b") is None


def test_what_raises_is_missing_with_its_first_line(bench: Bench) -> None:
    outcome = contest(bench, "cell", [Contender(name="a", seconds=never, check=raising)])
    assert outcome.line("a").missing == "failed: no kernel for this dtype"


def test_a_missing_peer_is_printed_as_missing(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    cell = HeadCell(bench, make_problem((8, 4, 11), torch.float32))
    outcome = contest(bench, "cell", [cell.peer("trl chunked", "forward")])
    assert outcome.line("trl chunked").missing == "no environment of peers; bash benchmarks/peers.sh makes it"
    assert "trl chunked" in (printed := capsys.readouterr().err)
    assert "missing: no environment of peers" in printed


def test_a_comparison_with_a_missing_side_has_no_verdict(bench: Bench) -> None:
    outcome = contest(bench, "cell", [Contender(name="a", seconds=lambda: 1.0)])
    line = at_least(
        "cell", "times b's speed", outcome.ratio("a", "b") if "b" in outcome.timings else None, 1.0
    )
    assert line.met is None
    assert line.void == "a side of the comparison is missing or void"


@pytest.mark.parametrize(("seconds", "met"), [(2.0, True), (1.0, False)])
def test_a_ratio_meets_its_target_or_misses_it(bench: Bench, seconds: float, met: bool) -> None:
    contenders = [
        Contender(name="ours", seconds=lambda: 1.0),
        Contender(name="peer", seconds=lambda: seconds),
    ]
    outcome = contest(bench, "cell", contenders)
    assert at_least("cell", "times the peer's speed", outcome.ratio("peer", "ours"), 1.5).met is met


def test_a_bound_is_met_from_below() -> None:
    assert at_most("cell", "share", 0.1, 0.125).met is True
    assert at_most("cell", "share", 0.2, 0.125).met is False
