"""Groups of rows by paper and pencil, and the gate on them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.bench import Bench
from benchmarks.cases import packing
from benchmarks.cases.packing import first_fit_decreasing, numbers, quality, sequential
from benchmarks.cases.rows import FILL, lognormal, padded

SIZES = [7, 5, 4, 3, 1]


def test_sequential_starts_a_group_where_a_row_no_longer_fits() -> None:
    assert sequential(SIZES, 10) == [[0], [1, 2], [3, 4]]


def test_first_fit_decreasing_fills_the_first_group_that_has_room() -> None:
    """7 + 3 and 5 + 4 + 1, whatever the order of the rows."""
    assert first_fit_decreasing(SIZES, 10) == [[0, 3], [1, 2, 4]]
    assert first_fit_decreasing([1, 3, 4, 5, 7], 10) == [[4, 1], [3, 2, 0]]


def test_quality_is_the_share_of_room_and_the_largest_load_over_the_mean() -> None:
    """Loads 7, 9 and 4 of 10: 20 of 30, and 9 over 20/3."""
    found = quality(torch.tensor(SIZES), torch.tensor([0, 1, 1, 2, 2]), 10)
    assert found == {
        "groups": 3.0,
        "max/mean load": pytest.approx(1.35),
        "fill": pytest.approx(2 / 3),
        "over the limit": 0.0,
    }


def test_a_load_over_the_limit_is_the_room_of_all_groups() -> None:
    """Loads 12 and 8 under a limit of 10: 20 of 24."""
    found = quality(torch.tensor(SIZES), torch.tensor([0, 0, 1, 1, 1]), 10)
    assert (found["fill"], found["over the limit"]) == (pytest.approx(20 / 24), 1.0)


def test_a_row_in_no_group_and_one_in_two_are_seen() -> None:
    assert numbers([[0, 2], [3, 2]], 4).tolist() == [0, -1, -2, 1]


def test_a_way_that_loses_a_row_is_void(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "sequential", lambda sizes, limit: [list(range(len(sizes) - 1))])
    lines = [line for line in packing.run(bench) if line.contender == "sequential"]
    assert lines[0].void == "1 rows lost or twice"
    assert lines[0].seconds is None


def test_lengths_have_the_mean_and_the_longest_asked_for() -> None:
    lengths = lognormal(4096, 2048, torch.Generator().manual_seed(0)).double()
    assert lengths.max() == 2048
    assert abs(lengths.mean() / 2048 - FILL) < 0.01
    spread = lengths[lengths < 2048].log().std()  # the clamp takes a little of it
    assert 0.5 < spread < 0.65


def test_padding_is_zero_and_masked() -> None:
    tokens, mask = padded([[5, 6], [7]], torch.device("cpu"))
    assert tokens.tolist() == [[5, 6], [7, 0]]
    assert mask.tolist() == [[True, True], [True, False]]


def test_without_peers_their_way_is_missing_and_ours_is_measured(bench: Bench, tmp_path: Path) -> None:
    lines = list(packing.run(replace(bench, least=1, rounds=1)))
    theirs = [line for line in lines if line.contender == packing.KARP]
    assert all(line.missing for line in theirs)
    ours = [line for line in lines if line.contender == "rlhf"]
    assert [set(line.values) >= {"max/mean load"} for line in ours] == [True, True]
