from __future__ import annotations

import pytest
import torch

from rlhf.data.order import batch_indices, epoch_order, rank_share


def test_an_epoch_visits_every_row_once() -> None:
    assert sorted(epoch_order(37, seed=3, epoch=2).tolist()) == list(range(37))


def test_seed_and_epoch_change_the_order_and_nothing_else_does() -> None:
    order = epoch_order(50, seed=0, epoch=0)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert torch.equal(epoch_order(50, seed=0, epoch=0), order)
    assert torch.equal(torch.get_rng_state(), state)
    others = [epoch_order(50, seed=s, epoch=e) for s, e in [(0, 1), (1, 0), (2**32, 0)]]
    assert not any(torch.equal(other, order) for other in others)


def test_a_batch_runs_on_into_the_next_epochs() -> None:
    endless = torch.cat([epoch_order(5, seed=1, epoch=epoch) for epoch in range(4)])
    assert torch.equal(batch_indices(3, 14, 5, 1), endless[3:17])
    assert torch.equal(batch_indices(5, 5, 5, 1), endless[5:10])
    assert len(batch_indices(5, 0, 5, 1)) == 0


def test_a_position_is_enough_to_continue() -> None:
    whole = batch_indices(0, 24, 7, seed=9)
    pieces = [batch_indices(position, 4, 7, seed=9) for position in range(0, 24, 4)]
    assert torch.equal(torch.cat(pieces), whole)


def test_ranks_share_a_batch_without_overlap() -> None:
    index = batch_indices(0, 12, 12, seed=0)
    shares = [rank_share(index, rank, 3) for rank in range(3)]
    assert torch.equal(shares[1], index[[1, 4, 7, 10]])
    assert sorted(torch.cat(shares).tolist()) == list(range(12))


def test_unequal_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="7 rows cannot be shared equally by 2 ranks"):
        rank_share(torch.arange(7), 0, 2)


def test_an_empty_data_set_has_no_order() -> None:
    with pytest.raises(ValueError, match="n must be positive, got 0"):
        batch_indices(0, 4, 0, seed=0)
