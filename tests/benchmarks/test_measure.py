"""Rounds, ratios and memory."""

import pytest
import torch

from benchmarks.measure import Timing, interleaved, peak_extra, quartiles, ratio


def test_every_contender_runs_once_a_round_and_each_round_starts_with_another() -> None:
    calls: list[str] = []

    def run(name: str) -> float:
        calls.append(name)
        return 1.0

    contenders = {name: lambda name=name: run(name) for name in "abc"}
    timings = interleaved(contenders, rounds=4, least=1, budget=60.0, warm_ups=0)
    assert calls == list("abcbcacababc")
    assert [len(timing.seconds) for timing in timings.values()] == [4, 4, 4]


def test_warm_ups_are_not_counted() -> None:
    seconds = iter([100.0, 1.0, 2.0])
    timings = interleaved({"a": lambda: next(seconds)}, rounds=2, least=2, budget=60.0, warm_ups=1)
    assert timings["a"].seconds == [1.0, 2.0]


def test_a_spent_budget_ends_the_rounds_but_not_before_the_least() -> None:
    timings = interleaved({"a": lambda: 1.0}, rounds=20, least=3, budget=0.0, warm_ups=0)
    assert len(timings["a"].seconds) == 3


def test_a_ratio_is_the_median_of_each_rounds_ratio() -> None:
    """2/1, 9/3 and 8/2; the ratio of the medians would be 8/2."""
    found = ratio(Timing(seconds=[2.0, 9.0, 8.0]), Timing(seconds=[1.0, 3.0, 2.0]))
    assert found.median == 3.0
    assert (found.low, found.high) == (2.5, 3.5)


def test_a_round_that_was_disturbed_does_not_move_the_ratio() -> None:
    quiet = ratio(Timing(seconds=[2.0] * 5), Timing(seconds=[1.0] * 5))
    disturbed = ratio(Timing(seconds=[2.0, 2.0, 40.0, 2.0, 2.0]), Timing(seconds=[1.0, 1.0, 20.0, 1.0, 1.0]))
    assert quiet == disturbed


@pytest.mark.parametrize(
    ("one", "decided"), [([2.0, 2.0, 2.0], True), ([0.5, 0.5, 0.6], True), ([0.5, 1.0, 2.0], False)]
)
def test_a_ratio_is_decided_when_the_middle_half_lies_on_one_side(one: list[float], decided: bool) -> None:
    assert ratio(Timing(seconds=one), Timing(seconds=[1.0, 1.0, 1.0])).decided is decided


def test_a_ratio_of_other_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="2 and 1 rounds"):
        ratio(Timing(seconds=[1.0, 1.0]), Timing(seconds=[1.0]))


def test_quartiles_of_five_numbers() -> None:
    assert quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == (2.0, 4.0)


def test_peak_memory_counts_what_is_held_and_let_go_but_not_the_result() -> None:
    size = 64 << 20

    def work() -> dict[str, torch.Tensor]:
        held = torch.ones(size // 4)
        return {"result": held[: size // 8].clone()}  # half as large

    found = peak_extra(work, torch.device("cpu"))
    if found is None:
        pytest.skip("this system does not tell its peak memory")
    assert 0.9 * size < found < 1.3 * size
