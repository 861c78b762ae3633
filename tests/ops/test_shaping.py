import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from rlhf.ops.shaping import missing_eos, overlong_penalty, token_rewards

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


def test_overlong_penalty_is_the_piecewise_table() -> None:
    """L = 20, C = 8: nothing up to 12 tokens, an eighth for each token after them, −1 from 20 on."""
    lengths = torch.tensor([0, 1, 12, 13, 16, 19, 20, 21, 400])
    expected = [0.0, 0.0, 0.0, -0.125, -0.5, -0.875, -1.0, -1.0, -1.0]
    assert overlong_penalty(lengths, limit=20, buffer=8).tolist() == expected


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(0, 10_000))
@settings(deadline=None, max_examples=50)
def test_rewards_are_the_loop_of_their_definition(lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(len(lengths), generator=generator, dtype=torch.float64)
    penalty = torch.randn(len(lengths), 5, generator=generator, dtype=torch.float64)
    expected = [[0.0] * 5 for _ in lengths]
    for row, length in enumerate(lengths):
        for t in range(length):
            expected[row][t] = (scores[row].item() if t == length - 1 else 0.0) - penalty[row, t].item()
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    assert token_rewards(scores, penalty, mask).tolist() == expected


def test_shaping_is_differentiable() -> None:
    scores = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    penalty = torch.tensor([[0.5, 1.0, 3.0], [0.25, 2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert gradcheck(lambda s, p: token_rewards(s, p, mask), (scores, penalty))
    assert gradcheck(lambda s: missing_eos(s, torch.tensor([True, False]), -1.0), (scores,))
