import torch

from rlhf.rollout.noise import row_noise


def noise(*groups: int, width: int = 5, seed: int = 0, stream: str = "sampling") -> torch.Tensor:
    return row_noise(torch.tensor(groups), width, seed, stream)


def test_numbers_are_uniform_in_0_to_1() -> None:
    values = noise(*range(400), width=50)
    assert values.shape == (400, 50)
    assert values.dtype == torch.float64
    assert 0 <= values.min() <= values.max() < 1
    assert abs(float(values.mean()) - 0.5) < 4 / (12 * 20_000) ** 0.5  # four standard errors
    counts = torch.histc(values.float(), bins=10, min=0, max=1)
    assert float(((counts - 2000) ** 2 / 2000).sum()) < 27.9  # χ² with 9 degrees, p = 0.001


def test_a_row_does_not_depend_on_the_batch() -> None:
    whole = noise(7, 8, 9)
    for row, group in enumerate((7, 8, 9)):
        assert torch.equal(noise(group)[0], whole[row])
    assert torch.equal(noise(9, 7, 8), whole[[2, 0, 1]])


def test_siblings_are_told_apart_by_their_order() -> None:
    rows = noise(4, 4, 5, 4)
    assert len({tuple(row.tolist()) for row in rows}) == 4
    assert torch.equal(noise(4, 5, 4, 4), rows[[0, 2, 1, 3]])


def test_two_ranks_draw_together_what_one_process_draws() -> None:
    groups = torch.arange(6)
    whole = row_noise(groups, 5, 0, "sampling")
    for rank in range(2):
        assert torch.equal(row_noise(groups[rank::2], 5, 0, "sampling"), whole[rank::2])


def test_later_tokens_do_not_change_earlier_numbers() -> None:
    assert torch.equal(noise(3, width=9)[:, :5], noise(3, width=5))


def test_seed_and_stream_change_every_number() -> None:
    assert not (noise(1) == noise(1, seed=1)).any()
    assert not (noise(1) == noise(1, stream="evaluation")).any()
