import pytest
import torch

from rlhf.trainers.micro_batches import by_length, exact_div, held_out


def test_exact_division() -> None:
    assert exact_div(12, 4, "batch_size", "ranks") == 3


@pytest.mark.parametrize(("numerator", "denominator"), [(10, 4), (0, 4), (4, 0), (-4, 2), (2, 4)])
def test_a_remainder_is_refused_and_named(numerator: int, denominator: int) -> None:
    message = f"batch_size={numerator} cannot be shared out equally over ranks={denominator}"
    with pytest.raises(ValueError, match=message):
        exact_div(numerator, denominator, "batch_size", "ranks")


def test_rows_of_like_length_are_forwarded_together() -> None:
    groups = by_length(torch.tensor([5, 1, 4, 1, 3]), 2)
    assert [group.tolist() for group in groups] == [[1, 3], [4, 2], [0]]  # equal lengths keep their order


@pytest.mark.parametrize("rows", [1, 2, 5, 8, 9])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_held_out_rows_are_counted_once_over_all_ranks(rows: int, world_size: int, size: int) -> None:
    shares = [list(held_out(rows, size, rank, world_size)) for rank in range(world_size)]
    counted = [int(row) for share in shares for index, real in share for row in index[real]]
    assert sorted(counted) == list(range(rows))
    assert len({tuple(len(index) for index, _ in share) for share in shares}) == 1  # as many forwards
    assert all(len(index) <= size and len(index) == len(real) for share in shares for index, real in share)
