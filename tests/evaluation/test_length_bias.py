import pytest
import torch

from rlhf.evaluation.bootstrap import Bootstrap
from rlhf.evaluation.length_bias import correlation, length_probe, ranks

BOOTSTRAP = Bootstrap(resamples=50)


def test_a_reward_that_counts_tokens_is_right_where_the_chosen_response_is_longer() -> None:
    chosen = torch.tensor([1, 9, 5, 8, 2, 7, 6, 6, 3, 10])
    rejected = torch.tensor([9, 1, 5, 2, 8, 3, 2, 9, 7, 1])
    found = length_probe(chosen.double(), rejected.double(), chosen, rejected, BOOTSTRAP)
    assert found.pearson == pytest.approx(1)
    assert found.spearman == pytest.approx(1)
    assert found.pearson_difference == pytest.approx(1)
    assert found.longer_chosen == 0.5  # differences −8 8 0 6 −6 4 4 −3 −4 9
    assert [(one.low, one.high, one.pairs) for one in found.groups] == [
        (-8, -6, 2),
        (-4, -3, 2),
        (0, 4, 3),
        (6, 6, 1),
        (8, 9, 2),
    ]
    assert [one.accuracy.value for one in found.groups] == pytest.approx([0, 0, 2 / 3, 1, 1])


def test_equal_differences_stay_in_one_group() -> None:
    lengths = torch.tensor([5] * 9 + [6])
    found = length_probe(torch.ones(10), torch.zeros(10), lengths, torch.full((10,), 5), BOOTSTRAP)
    assert [(one.low, one.high, one.pairs) for one in found.groups] == [(0, 0, 9), (1, 1, 1)]


def test_a_constant_reward_has_no_correlation() -> None:
    lengths = torch.tensor([1, 2, 3])
    found = length_probe(torch.ones(3), torch.ones(3), lengths, lengths.flip(0), BOOTSTRAP)
    assert (found.pearson, found.spearman, found.pearson_difference) == (None, None, None)
    assert all(one.accuracy.value == 0 for one in found.groups)


def test_correlation_of_a_hand_worked_case() -> None:
    """Deviations (−1, 0, 1) and (−1, 2, −1): Σ = 0; and (−2, 0, 2)·(−3, 1, 2) / √(8·14)."""
    assert correlation(torch.tensor([1.0, 2, 3]), torch.tensor([0.0, 3, 0])) == pytest.approx(0)
    assert correlation(torch.tensor([0, 2, 4]), torch.tensor([1.0, 5, 6])) == pytest.approx(10 / 112**0.5)


def test_equal_values_share_their_mean_rank() -> None:
    assert ranks(torch.tensor([3.0, 1, 3, 2, 3])).tolist() == [4, 1, 4, 2, 4]
