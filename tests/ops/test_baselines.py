import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from rlhf.ops.baselines import group_deviation, group_std, leave_one_out, unequal_groups

ALL = torch.ones(4, dtype=torch.bool)


def sample(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of groups of 2 to 4 rows in shuffled order, some rows not counted."""
    generator = torch.Generator().manual_seed(seed)
    group = torch.tensor([5, 5, 5, 5, 5, -2, -2, -2, 90, 90, 90, 90])
    counted = torch.tensor([1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1], dtype=torch.bool)
    order = torch.randperm(12, generator=generator)
    return torch.randn(12, generator=generator, dtype=torch.float64), group[order], counted[order]


def siblings(row: int, group: Tensor, counted: Tensor) -> list[int]:
    return [j for j in range(len(group)) if counted[j] and group[j] == group[row]]


def test_leave_one_out_is_the_literal_example() -> None:
    found = leave_one_out(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.zeros(4, dtype=torch.int64), ALL)
    torch.testing.assert_close(found, torch.tensor([-2, -2 / 3, 2 / 3, 2], dtype=torch.float64))


def test_standardised_group_is_the_literal_example() -> None:
    scores, group = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.zeros(4, dtype=torch.int64)
    found = group_deviation(scores, group, ALL) / (group_std(scores, group, ALL) + 1e-4)
    expected = torch.tensor([-1.16180501, -0.38726834, 0.38726834, 1.16180501], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-9)  # eight printed digits


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_group_statistics_are_those_of_the_rows_with_equal_ids(seed: int) -> None:
    scores, group, counted = sample(seed)
    out, deviation, std = (f(scores, group, counted) for f in (leave_one_out, group_deviation, group_std))
    for row in range(len(scores)):
        if not counted[row]:
            assert out[row] == deviation[row] == std[row] == 0
            continue
        values = [scores[j].item() for j in siblings(row, group, counted)]
        average = math.fsum(values) / len(values)
        spread = math.sqrt(math.fsum((v - average) ** 2 for v in values) / (len(values) - 1))
        others = [scores[j].item() for j in siblings(row, group, counted) if j != row]
        assert deviation[row].item() == pytest.approx(scores[row].item() - average, abs=1e-12)
        assert std[row].item() == pytest.approx(spread, abs=1e-12)
        assert out[row].item() == pytest.approx(
            scores[row].item() - math.fsum(others) / len(others), abs=1e-12
        )


def test_leave_one_out_sums_to_zero_in_every_group() -> None:
    scores, group, counted = sample(7)
    out = leave_one_out(scores, group, counted)
    for number in group.unique():
        assert abs(out[group == number].sum()) < 1e-12


@given(st.integers(2, 64), st.floats(-1e6, 1e6, width=32), st.sampled_from([torch.float32, torch.float64]))
@settings(deadline=None, max_examples=100)
def test_equal_scores_deviate_by_exactly_zero(size: int, score: float, dtype: torch.dtype) -> None:
    scores, group = torch.full((size,), score, dtype=dtype), torch.zeros(size, dtype=torch.int64)
    scores, counted = scores / 3, torch.ones(size, dtype=torch.bool)
    assert (leave_one_out(scores, group, counted) == 0).all()
    assert (group_deviation(scores, group, counted) == 0).all()
    assert (group_std(scores, group, counted) == 0).all()


def test_sixteen_scores_of_seven_tenths_give_no_residue() -> None:
    scores, group = torch.full((16,), 0.7), torch.zeros(16, dtype=torch.int64)
    counted = torch.ones(16, dtype=torch.bool)
    centred = group_deviation(scores, group, counted)
    assert (centred / (group_std(scores, group, counted) + 1e-8) == 0).all()  # 11.9 with a float32 mean


def test_order_of_rows_does_not_matter() -> None:
    scores, group, counted = sample(3)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(9))
    for statistic in (leave_one_out, group_deviation, group_std):
        torch.testing.assert_close(
            statistic(scores[order], group[order], counted[order]), statistic(scores, group, counted)[order]
        )


@pytest.mark.parametrize("statistic", [leave_one_out, group_deviation, group_std])
def test_a_single_response_is_refused_by_name(statistic) -> None:
    with pytest.raises(ValueError, match=f"{statistic.__name__}: group 7 has 1 response, needs at least 2"):
        statistic(torch.zeros(4), torch.tensor([3, 3, 7, 3]), ALL)


@pytest.mark.parametrize("statistic", [leave_one_out, group_deviation, group_std])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e9, -1e9])
def test_rows_that_do_not_count_are_not_read(statistic, poison: float) -> None:
    scores, group, counted = sample(5)
    dirty = torch.where(counted, scores, poison)
    assert torch.equal(statistic(dirty, group, counted), statistic(scores, group, counted))


@pytest.mark.parametrize("statistic", [leave_one_out, group_deviation, group_std])
def test_a_group_without_a_counted_row_is_zero(statistic) -> None:
    counted = torch.tensor([True, True, False, False])
    found = statistic(torch.tensor([1.0, 3.0, 5.0, 5.0]), torch.tensor([0, 0, 1, 1]), counted)
    assert found[2:].tolist() == [0.0, 0.0]


def test_groups_with_fewer_than_all_and_more_than_none_correct_are_kept() -> None:
    """DAPO's condition 0 < correct < G, for every number of correct answers out of four."""
    correct = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    group = torch.arange(5).repeat_interleave(4)[order]
    kept = unequal_groups(correct.flatten().float()[order], group, torch.ones(20, dtype=torch.bool))
    assert torch.equal(kept, (group > 0) & (group < 4))


def test_equality_of_a_group_is_judged_by_its_counted_rows() -> None:
    scores = torch.tensor([1.0, 1.0, float("nan"), 2.0, 3.0, 7.0])
    group, counted = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([1, 1, 0, 1, 1, 0]).bool()
    assert unequal_groups(scores, group, counted).tolist() == [False] * 3 + [True] * 2 + [False]


@pytest.mark.parametrize("statistic", [leave_one_out, group_deviation, group_std])
def test_group_statistics_are_differentiable(statistic) -> None:
    scores, group, counted = sample(2)
    assert gradcheck(lambda x: statistic(x, group, counted), (scores.requires_grad_(),))


@pytest.mark.parametrize("statistic", [leave_one_out, group_deviation, group_std])
def test_group_statistics_stay_where_the_scores_are(statistic) -> None:
    """Whatever torch's default device is; "meta" stands for another one."""
    expected = statistic(*sample(4))
    drawn = sample(4)
    with torch.device("meta"):
        found = statistic(*drawn)
    assert torch.equal(found, expected)
