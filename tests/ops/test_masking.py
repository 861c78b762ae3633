import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from rlhf.ops.masking import masked_moments, response_mask, whiten

POISON = [float("nan"), 1e9, -1e9, float("inf")]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ragged(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    lengths = torch.randint(0, width + 1, (rows,), generator=torch.Generator().manual_seed(seed))
    lengths[0] = max(int(lengths[0]), 2)
    return torch.arange(width) < lengths[:, None]


@given(st.lists(st.lists(st.integers(0, 4), min_size=5, max_size=5), min_size=1, max_size=6))
@settings(deadline=None, max_examples=60)
def test_response_mask_is_the_loop_of_its_definition(ids: list[list[int]]) -> None:
    expected = []
    for row in ids:
        seen, line = False, []
        for token in row:
            line.append(not seen)
            seen = seen or token in (3, 4)
        expected.append(line)
    assert response_mask(torch.tensor(ids), [3, 4]).tolist() == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([1, 2, 0, 1], [1, 1, 1, 1]),  # none
        ([4, 2, 0, 1], [1, 0, 0, 0]),  # at once
        ([1, 4, 4, 4], [1, 1, 0, 0]),  # several
        ([1, 2, 0, 4], [1, 1, 1, 1]),  # at the last position
    ],
)
def test_response_mask_includes_the_first_end_token(row: list[int], expected: list[int]) -> None:
    assert response_mask(torch.tensor([row]), [4]).long().tolist() == [expected]


def test_response_mask_takes_the_end_ids_as_a_tensor() -> None:
    assert response_mask(torch.tensor([[1, 4, 2]]), torch.tensor([4])).tolist() == [[True, True, False]]


@pytest.mark.parametrize("statistic", [masked_moments, whiten])
def test_statistics_of_nothing_are_refused(statistic, one_rank) -> None:
    with pytest.raises(
        ValueError, match=r"^masked_moments: the mask has no True position on any rank, needs at least 1$"
    ):
        statistic(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool), one_rank)


def test_moments_are_those_of_a_hand_worked_sample(one_rank) -> None:
    moments = masked_moments(
        torch.tensor([[2.0, 4.0], [9.0, 7.0]]), torch.tensor([[True, True], [True, False]]), one_rank
    )
    assert (moments.count.item(), moments.mean.item()) == (3.0, 5.0)
    assert moments.variance.item() == pytest.approx((9 + 1 + 16) / 3)  # population


@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4, -1e4])
def test_variance_of_an_offset_sample_agrees_with_two_passes(offset: float, one_rank) -> None:
    x = (random(64, 64) + offset).float()
    mean = math.fsum(x.flatten().tolist()) / x.numel()
    exact = math.fsum((v - mean) ** 2 for v in x.flatten().tolist()) / x.numel()
    variance = masked_moments(x, torch.ones_like(x, dtype=torch.bool), one_rank).variance
    assert variance.item() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.7, -3.3, 1e-6, 12345.678])
def test_equal_numbers_have_variance_zero_and_whiten_to_zero(value: float, one_rank) -> None:
    x = torch.full((33, 7), value)
    mask = ragged(33, 7)
    assert masked_moments(x, mask, one_rank).variance.item() == 0.0
    assert whiten(x, mask, one_rank).abs().max() == 0.0


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(2, 9), st.floats(-50, 50), st.floats(0.1, 50))
@settings(deadline=None, max_examples=40)
def test_whitened_numbers_have_mean_zero_and_population_variance_one(
    seed: int, rows: int, width: int, shift: float, scale: float
) -> None:
    x, mask = random(rows, width, seed=seed) * scale + shift, ragged(rows, width, seed)
    y = whiten(x, mask, lambda part: part)
    kept = y[mask]
    spread = x[mask].var(correction=0)
    assert abs(kept.mean()) < 1e-6
    torch.testing.assert_close(kept.var(correction=0), spread / (spread + 1e-8), rtol=1e-6, atol=1e-9)
    assert (y[~mask] == 0).all()


def test_whitening_is_the_hand_worked_example(one_rank) -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    y = whiten(x, torch.ones(2, 2, dtype=torch.bool), one_rank, eps=0.75)  # variance 1.25, 1.25 + 0.75 = 2
    torch.testing.assert_close(y * 2**0.5, torch.tensor([[-1.5, -0.5], [0.5, 1.5]], dtype=torch.float64))


def test_whitening_keeps_the_dtype(one_rank) -> None:
    assert whiten(torch.randn(3, 3), torch.ones(3, 3, dtype=torch.bool), one_rank).dtype == torch.float32


@pytest.mark.parametrize("ranks", [2, 4])
def test_whitening_on_several_ranks_is_whitening_on_one(ranks: int, across_ranks, one_rank) -> None:
    x, mask = random(8, 5) + 3, ragged(8, 5)
    whole = whiten(x, mask, one_rank)
    parts = across_ranks(
        lambda rank, total: whiten(x.chunk(ranks)[rank], mask.chunk(ranks)[rank], total), ranks
    )
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)
    alone = torch.cat(
        [whiten(p, m, one_rank) for p, m in zip(x.chunk(ranks), mask.chunk(ranks), strict=True)]
    )
    assert (alone - whole).abs().max() > 0.01  # statistics per rank are something else


def test_a_rank_without_tokens_takes_part(across_ranks, one_rank) -> None:
    x, mask = random(2, 4), torch.tensor([[True] * 4, [False] * 4])
    parts = across_ranks(lambda rank, total: whiten(x[rank : rank + 1], mask[rank : rank + 1], total), 2)
    torch.testing.assert_close(torch.cat(parts), whiten(x, mask, one_rank))


@pytest.mark.parametrize("poison", POISON)
def test_padding_never_reaches_a_statistic(poison: float, one_rank) -> None:
    x, mask = random(6, 5).float(), ragged(6, 5)
    dirty = torch.where(mask, x, poison)
    assert torch.equal(whiten(dirty, mask, one_rank), whiten(x, mask, one_rank))
    assert torch.equal(
        masked_moments(dirty, mask, one_rank).variance, masked_moments(x, mask, one_rank).variance
    )


def test_response_mask_is_where_the_responses_are() -> None:
    """Whatever torch's default device is; "meta" stands for another one."""
    responses = torch.tensor([[1, 4, 2]])
    with torch.device("meta"):
        found = response_mask(responses, [4])
    assert found.tolist() == [[True, True, False]]


@pytest.mark.parametrize("unit", [1e-6, 1e-3, 1e3, 1e6])
def test_variance_is_in_the_square_of_any_unit(unit: float, one_rank) -> None:
    x, mask = random(16, 8) + 1, ragged(16, 8)
    one = masked_moments(x, mask, one_rank)
    found = masked_moments(x * unit, mask, one_rank)
    torch.testing.assert_close(found.variance, one.variance * unit**2, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.mean, one.mean * unit, rtol=1e-12, atol=0)


@given(st.integers(1, 5000), st.floats(1e3, 1e9))
@settings(deadline=None, max_examples=50)
def test_equal_large_numbers_have_no_variance_whatever_their_sum_rounds_to(count: int, value: float) -> None:
    x = torch.full((count,), value, dtype=torch.float64)
    moments = masked_moments(x, torch.ones(count, dtype=torch.bool), lambda part: part)
    assert moments.variance == 0


def test_whitening_by_other_statistics_is_something_else(one_rank) -> None:
    """Negative controls (numerics E6): over the padding, with ddof = 1, without centring."""
    x, mask = random(6, 5) + 2, ragged(6, 5)
    kept, right = x[mask], whiten(x, mask, one_rank)[mask]
    for mean, variance in [
        (x.mean(), x.var(correction=0)),
        (kept.mean(), kept.var(correction=1)),
        (torch.tensor(0.0), kept.var(correction=0)),
    ]:
        assert ((kept - mean) / (variance + 1e-8).sqrt() - right).abs().max() > 0.01
    torch.testing.assert_close((kept - kept.mean()) / (kept.var(correction=0) + 1e-8).sqrt(), right)


def test_statistics_are_differentiable(one_rank) -> None:
    x, mask = random(3, 4).requires_grad_(), ragged(3, 4)

    def moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = masked_moments(x, mask, one_rank)
        return found.mean, found.variance

    assert gradcheck(moments, (x,))
    assert gradcheck(lambda x: whiten(x, mask, one_rank), (x,))
