import pytest
import torch

from rlhf.trainers import micro_batches
from rlhf.trainers.micro_batches import Cut, alike, dealt, exact_div, held_out, level, needed, together


def test_exact_division() -> None:
    assert exact_div(12, 4, "batch_size", "ranks") == 3


@pytest.mark.parametrize(("numerator", "denominator"), [(10, 4), (0, 4), (4, 0), (-4, 2), (2, 4)])
def test_a_remainder_is_refused_and_named(numerator: int, denominator: int) -> None:
    message = f"batch_size={numerator} cannot be shared out equally over ranks={denominator}"
    with pytest.raises(ValueError, match=message):
        exact_div(numerator, denominator, "batch_size", "ranks")


def test_rows_of_like_length_are_forwarded_together() -> None:
    groups = Cut(rows=2)(torch.tensor([5, 1, 4, 1, 3]))
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


def lognormal(rows: int) -> torch.Tensor:
    drawn = torch.randn(rows, generator=torch.Generator().manual_seed(0)).mul(0.6).exp()
    return (drawn * 150).round().long().clamp(2, 1024)


def work(lengths: torch.Tensor, groups: tuple[torch.Tensor, ...], packed: bool) -> list[int]:
    return [int(lengths[g].sum() if packed else len(g) * lengths[g].max()) for g in groups]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("tokens", [8, 11, 30, 1000])
def test_no_group_takes_more_tokens_than_allowed_but_a_row_alone(tokens: int, packed: bool) -> None:
    lengths = torch.tensor([5, 1, 9, 1, 3, 9, 2, 7, 1])
    groups = Cut(rows=1, tokens=tokens, packed=packed)(lengths)
    assert sorted(int(row) for group in groups for row in group) == list(range(9))
    assert all(len(group) > 0 for group in groups)
    assert max(work(lengths, groups, packed)) <= max(tokens, 9)
    assert (len(groups) == 1) == (tokens == 1000)


def test_packed_groups_are_equally_full() -> None:
    lengths = lognormal(4096)
    groups = Cut(rows=1, tokens=8192, packed=True)(lengths)
    loads = work(lengths, groups, packed=True)
    assert max(loads) <= 1.02 * min(loads)
    assert int(lengths.sum()) >= 0.98 * 8192 * len(groups)


def test_the_longest_row_left_goes_to_the_lightest_group() -> None:
    assert level([7, 2, 5, 4, 6, 3], 2) == [[0, 3, 5], [1, 2, 4]]  # 7+4+3 and 6+5+2


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_ranks_get_equally_many_rows_and_nearly_as_many_tokens(ranks: int) -> None:
    sizes = lognormal(512).tolist()
    shares = [dealt(sizes, rank, ranks) for rank in range(ranks)]
    assert sorted(row for share in shares for row in share) == list(range(512))
    assert {len(share) for share in shares} == {512 // ranks}
    loads = [sum(sizes[row] for row in share) for share in shares]
    assert max(loads) <= 1.01 * sum(loads) / ranks


def test_a_row_is_dealt_to_the_lightest_rank_with_room() -> None:
    assert [dealt([9, 1, 2, 3], rank, 2) for rank in (0, 1)] == [[0, 1], [2, 3]]  # 9+1 and 3+2
    assert [dealt([4, 3, 3, 4], rank, 2) for rank in (0, 1)] == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="rows=3 cannot be shared out equally over ranks=2"):
        dealt([1, 2, 3], 0, 2)


def test_padded_groups_hold_neighbours_in_length() -> None:
    assert alike([1, 8, 2, 8, 1, 2], 2) == [[1, 3], [2, 5, 0, 4]]  # 2·8 and 4·2
    assert sorted(len(group) for group in alike([4] * 5, 4)) == [1, 1, 1, 2]


def test_equal_rows_are_cut_equally_wherever_they_stand() -> None:
    lengths = lognormal(50)
    cut = Cut(rows=1, tokens=1500, packed=True)
    assert [g.tolist() for g in cut(lengths)] == [g.tolist() for g in cut(lengths.clone())]


@pytest.mark.parametrize("packed", [False, True])
def test_a_rank_makes_as_many_passes_as_the_one_that_needs_most(
    packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths, cut = lognormal(20), Cut(rows=1, tokens=1500, packed=packed)
    own = len(cut(lengths))
    monkeypatch.setattr(micro_batches, "all_max", lambda count: count + 3)
    groups = cut(lengths)
    assert len(groups) == own + 3
    assert all(len(group) > 0 for group in groups)


def test_packed_rows_are_counted_off_in_their_own_order() -> None:
    groups = Cut(rows=2, packed=True)(torch.tensor([5, 1, 4, 1, 3]))
    assert [group.tolist() for group in groups] == [[0, 1], [2, 3], [4]]


def test_rows_of_a_group_stay_together_where_they_fit() -> None:
    assert together([3, 3, 4, 4, 2], 6, [7, 7, 8, 8, 9]) == [[0, 1], [2], [3], [4]]
    assert together([3, 3], 9, None) == [[0], [1]]
    lengths, group = torch.tensor([3, 5, 3, 5, 3, 5]), torch.tensor([0, 1, 0, 1, 0, 1])
    passes = Cut(rows=1, tokens=15, packed=True)(lengths, group)
    assert [rows.tolist() for rows in passes] == [[1, 3, 5], [0, 2, 4]]


def test_groups_are_taken_apart_where_another_rank_needs_more_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_batches, "all_max", lambda count: count + 3)
    passes = Cut(rows=1, tokens=100, packed=True)(torch.tensor([4, 4, 4, 4]), torch.tensor([0, 0, 1, 1]))
    assert sorted(rows.tolist() for rows in passes) == [[0], [1], [2], [3]]


@pytest.mark.parametrize(("rows", "tokens", "name"), [(5, None, "micro_batch_size=5"), (4, 7, "tokens=7")])
def test_sizes_are_shared_out_over_the_ranks(rows: int, tokens: int | None, name: str) -> None:
    assert Cut.shared(4, 8, 2, packed=True) == Cut(rows=2, tokens=4, packed=True)
    with pytest.raises(ValueError, match=rf"{name} cannot be shared out equally over ranks=2"):
        Cut.shared(rows, tokens, 2, packed=False)


def test_one_group_more_where_longest_first_does_not_fit() -> None:
    assert needed([3, 3, 2, 2, 2], 6) == 3  # 3+3 and 2+2+2 would fit; dealt out they are 3+2+2 and 3+2
    assert needed([3, 3, 2, 2, 2], 7) == 2
