import math

import pytest
import torch

from rlhf.evaluation import bootstrap
from rlhf.evaluation.bootstrap import Bootstrap, Estimate, block_sizes, estimate


def test_the_bootstrap_of_a_share_has_the_binomial_error() -> None:
    """Resampling zeros and ones is drawing from a binomial: sd √(p(1 − p)/n), and its quantiles."""
    right = (torch.arange(400) < 300).double()
    means = Bootstrap(resamples=20_000).means(right)
    error = math.sqrt(0.75 * 0.25 / 400)
    assert float(means.mean()) == pytest.approx(0.75, abs=4 * error / math.sqrt(20_000))
    assert float(means.std()) == pytest.approx(error, rel=4 / math.sqrt(2 * 20_000))
    found = Bootstrap(resamples=20_000).mean(right)
    assert found.value == 0.75
    assert found.low == pytest.approx(0.75 - 1.96 * error, abs=1.5 / 400)  # a lattice of 1/400
    assert found.high == pytest.approx(0.75 + 1.96 * error, abs=1.5 / 400)


def test_an_interval_never_ends_on_the_wrong_side_of_its_value_by_rounding() -> None:
    below, above = Estimate(value=1 - 1e-15, low=1.0, high=1.0).reach
    assert below == 0 < above < 1e-14
    assert Estimate(value=1 + 1e-15, low=1.0, high=1.0).reach[1] == 0
    assert Estimate(value=0.5, low=0.25, high=1.0).reach == (0.25, 0.5)


def test_columns_are_resampled_together() -> None:
    values = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means = Bootstrap(resamples=10).means(torch.cat([values, values.sum(1, keepdim=True)], 1))
    torch.testing.assert_close(means[:, 2], means[:, 0] + means[:, 1])


def test_equal_seeds_give_equal_resamples_and_other_streams_others() -> None:
    values = torch.arange(30.0)
    one, same, other, named = (
        Bootstrap(resamples=5, seed=seed).means(values, *names)
        for seed, names in ((3, ()), (3, ()), (4, ()), (3, ("a",)))
    )
    assert one.equal(same)
    assert not one.equal(other)
    assert not one.equal(named)


def test_blocks_change_nothing_but_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.arange(30.0)
    whole = Bootstrap(resamples=100).means(values)
    monkeypatch.setattr(bootstrap, "BLOCK", 70)
    assert list(block_sizes(5, 30)) == [2, 2, 1]
    assert list(block_sizes(2, 1000)) == [1, 1]
    parts = Bootstrap(resamples=100).means(values)
    assert parts.shape == whole.shape
    assert parts.equal(whole)


def test_an_interval_is_the_middle_of_the_resamples() -> None:
    found = estimate(0.5, torch.arange(1001.0))
    assert (found.value, found.low, found.high) == (0.5, 25.0, 975.0)
