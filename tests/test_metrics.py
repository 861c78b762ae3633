import json
import math
import time

import pytest
import torch

from rlhf.metrics import Clock, Metrics, peak_bytes


def alone(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def test_a_mean_is_divided_once_after_all_micro_batches() -> None:
    metrics = Metrics()
    metrics.mean("loss", torch.tensor([4.0]))
    metrics.mean("loss", torch.tensor([1.0, 2.0, 3.0]))
    assert metrics.reduce(alone, alone) == {"loss": 2.5}  # the mean of the two means would be 3


def test_a_mean_over_ranks_is_the_sum_over_the_count() -> None:
    mine, other = Metrics(), Metrics()
    mine.mean("loss", torch.tensor([4.0]))
    other.mean("loss", torch.tensor([1.0, 2.0, 3.0]))
    both = torch.tensor([other.pairs["loss"]], dtype=torch.float64)
    assert mine.reduce(lambda tensor: tensor + both, alone) == {"loss": 2.5}


def test_masked_entries_are_not_read() -> None:
    metrics = Metrics()
    values = torch.tensor([[1.0, math.nan], [3.0, math.inf]])
    metrics.mean("loss", values, torch.tensor([[True, False], [True, False]]))
    assert metrics.pairs["loss"] == (4.0, 2.0)


def test_sums_are_accumulated_in_float64() -> None:
    metrics = Metrics()
    metrics.mean("loss", torch.full((3,), 16777217.0 / 3, dtype=torch.float64).float())
    third = float(torch.tensor(16777217.0 / 3, dtype=torch.float32))
    assert metrics.pairs["loss"] == (3 * third, 3.0)  # float32 would have lost a bit


def test_a_mean_over_nothing_is_left_out() -> None:
    metrics = Metrics()
    metrics.mean("score", torch.ones(2), torch.zeros(2, dtype=torch.bool))
    metrics.value("lr", 0.5)
    assert metrics.reduce(alone, alone) == {"lr": 0.5}


def test_no_metric_at_all_is_fine() -> None:
    assert Metrics().reduce(alone, alone) == {}


def test_a_value_that_every_rank_has_stays_itself() -> None:
    metrics = Metrics()
    metrics.value("lr", 0.25)
    assert metrics.reduce(lambda tensor: 4 * tensor, alone) == {"lr": 0.25}


def test_a_maximum_is_over_micro_batches_and_ranks() -> None:
    metrics = Metrics()
    for value in (-3.0, -1.0, -2.0):
        metrics.maximum("gap", torch.tensor(value))
    assert metrics.reduce(alone, alone) == {"gap": -1.0}
    assert metrics.reduce(alone, lambda tensor: tensor.clamp(min=5.0)) == {"gap": 5.0}


def test_merging_adds_sums_and_counts_under_a_prefix() -> None:
    metrics, other = Metrics(), Metrics()
    metrics.add("eval/loss", 1.0, 1)
    other.add("loss", 5.0, 2)
    other.maximum("gap", 0.5)
    metrics.merge(other, "eval/")
    metrics.merge(other)
    assert metrics.reduce(alone, alone) == {"eval/loss": 2.0, "eval/gap": 0.5, "loss": 2.5, "gap": 0.5}
    assert other.pairs == {"loss": (5.0, 2.0)}


def test_a_metric_keeps_no_graph() -> None:
    metrics = Metrics()
    metrics.mean("loss", torch.ones(2, requires_grad=True) * 2)
    assert json.dumps(metrics.pairs) == '{"loss": [4.0, 2.0]}'


def test_phases_and_the_rest_sum_to_the_step() -> None:
    clock, metrics = Clock(), Metrics()
    for name, seconds in (("sample", 0.02), ("update", 0.01), ("update", 0.01)):
        with clock.phase(name):
            time.sleep(seconds)
    time.sleep(0.01)
    clock.report(metrics, tokens=100, rows=10, ranks=2)
    found = metrics.reduce(alone, alone)
    assert found["time/sample"] >= 0.02
    assert found["time/update"] >= 0.02
    assert found["time/other"] >= 0.01
    assert found["time/sample"] + found["time/update"] + found["time/other"] == pytest.approx(
        found["time/step"]
    )
    assert found["throughput/tokens_per_second"] == pytest.approx(200 / found["time/step"])
    assert found["throughput/samples_per_second"] == pytest.approx(20 / found["time/step"])
    assert found["memory/peak_bytes"] > 0


def test_peak_memory_is_in_bytes() -> None:
    assert 2**24 < peak_bytes() < 2**44  # Python and torch alone take more than 16 MiB
