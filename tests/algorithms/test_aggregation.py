import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf.algorithms.aggregation import Aggregation, ConstantLength, SequenceMean, TokenMean

MODES = [TokenMean(), SequenceMean(), ConstantLength(length=4)]
MASK = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
LOSSES = torch.tensor([[4.0, 9.0, 9.0, 9.0], [1.0, 2.0, 3.0, 9.0]])


@pytest.mark.parametrize(("mode", "expected"), list(zip(MODES, [2.5, 3.0, 1.25], strict=True)))
def test_aggregation_is_the_literal_example(mode: Aggregation, expected: float, one_rank) -> None:
    assert (mode(MASK, one_rank) * LOSSES).sum().item() == pytest.approx(expected)


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_row_weighs_nothing_and_is_in_no_denominator(mode: Aggregation, one_rank) -> None:
    longer = torch.cat([MASK, torch.zeros(2, 4, dtype=torch.bool)])
    weights = mode(longer, one_rank)
    assert torch.equal(weights[:2], mode(MASK, one_rank))
    assert (weights[2:] == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_minibatch_is_refused(mode: Aggregation, one_rank) -> None:
    name = type(mode).__name__
    with pytest.raises(
        ValueError, match=f"^{name}: no response in the minibatch has a token, needs at least 1$"
    ):
        mode(torch.zeros(2, 3, dtype=torch.bool), one_rank)


def test_equal_lengths_make_all_modes_proportional(one_rank) -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0]], dtype=torch.bool)
    token, sequence, constant = (mode(mask, one_rank) for mode in MODES)
    torch.testing.assert_close(token, sequence)
    torch.testing.assert_close(token, constant * 4 / 3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ranks", [2, 3])
def test_uneven_ranks_weigh_tokens_as_one_process(
    mode: Aggregation, ranks: int, across_ranks, one_rank
) -> None:
    lengths = torch.tensor([1, 7, 2, 6, 0, 3])
    mask = torch.arange(7) < lengths[:, None]
    parts = across_ranks(lambda rank, total: mode(mask.chunk(ranks)[rank], total), ranks)
    torch.testing.assert_close(torch.cat(parts), mode(mask, one_rank), rtol=0, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_a_rank_without_tokens_takes_part(mode: Aggregation, across_ranks) -> None:
    full, empty = torch.ones(2, 4, dtype=torch.bool), torch.zeros(2, 4, dtype=torch.bool)
    parts = across_ranks(lambda rank, total: mode(empty if rank else full, total), 2)
    assert torch.equal(parts[0], mode(full, lambda part: part))
    assert (parts[1] == 0).all()


def test_a_mean_per_micro_batch_is_something_else(one_rank) -> None:
    parts: list[Tensor] = [
        (TokenMean()(MASK[row : row + 1], one_rank) * LOSSES[row]).sum() for row in range(2)
    ]
    assert torch.stack(parts).mean().item() == 3.0  # 2.5 over the minibatch


@pytest.mark.parametrize("length", [0, -3])
def test_a_length_below_one_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"ConstantLength.length must be at least 1, got {length}"):
        ConstantLength(length=length)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=8).filter(any))
@settings(deadline=None, max_examples=50)
def test_weights_sum_to_what_each_mode_averages_over(lengths: list[int]) -> None:
    """Token and sequence means to 1, the latter alike in every row; a constant length to mean length/L."""
    mask, real = torch.arange(6) < torch.tensor(lengths)[:, None], [n for n in lengths if n]
    token, sequence, constant = (mode(mask, lambda part: part).double() for mode in MODES)
    assert token.sum().item() == pytest.approx(1, abs=1e-6)
    shares = [1 / len(real) if n else 0.0 for n in lengths]
    assert sequence.sum(1).tolist() == pytest.approx(shares, abs=1e-6)
    assert constant.sum().item() == pytest.approx(sum(real) / len(real) / 4, abs=1e-6)
    assert token[mask].unique().numel() == constant[mask].unique().numel() == 1
