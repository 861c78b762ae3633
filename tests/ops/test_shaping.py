import pytest
import torch

from rlhf.ops.shaping import missing_eos, token_rewards

NAN = float("nan")


def test_rewards_are_the_literal_table() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    penalty = torch.tensor([[0.5, -0.25, 1.0, 9.0], [2.0, 9.0, 9.0, 9.0], [0.0, 0.0, 0.0, 0.25], [9.0] * 4])
    expected = [[-0.5, 0.25, 2.0, 0.0], [5.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, -1.25], [0.0] * 4]
    assert token_rewards(torch.tensor([3.0, 7.0, -1.0, 8.0]), penalty, mask).tolist() == expected


def test_rewards_of_a_row_sum_to_the_score_minus_the_penalty() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(9, generator=generator, dtype=torch.float64)
    penalty = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    mask = torch.arange(6) < torch.randint(1, 7, (9, 1), generator=generator)
    found = token_rewards(scores, penalty, mask).sum(1)
    torch.testing.assert_close(found, scores - torch.where(mask, penalty, 0.0).sum(1))


def test_a_score_of_zero_is_a_score() -> None:
    assert missing_eos(torch.tensor([0.0, 0.0]), torch.tensor([True, False]), -1.0).tolist() == [0.0, -1.0]


@pytest.mark.parametrize("model", [NAN, float("inf"), -3.0])
def test_a_cut_response_never_shows_what_the_model_said(model: float) -> None:
    found = missing_eos(torch.tensor([model, 2.0]), torch.tensor([False, True]), -1.0)
    assert found.tolist() == [-1.0, 2.0]


@pytest.mark.parametrize("poison", [NAN, 1e9, -1e9])
def test_padding_never_reaches_the_rewards(poison: float) -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    penalty = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    scores = torch.tensor([1.0, 2.0])
    clean = token_rewards(scores, penalty, mask)
    assert torch.equal(token_rewards(scores, torch.where(mask, penalty, poison), mask), clean)


def test_an_empty_row_reads_no_score() -> None:
    mask = torch.tensor([[False, False], [True, False]])
    found = token_rewards(torch.tensor([NAN, 1.0]), torch.zeros(2, 2), mask)
    assert found.tolist() == [[0.0, 0.0], [1.0, 0.0]]
