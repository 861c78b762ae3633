"""What is measured of the reference demonstrations, by pencil and over ranks."""

from types import ModuleType

import pytest
import torch

from rlhf.distributed.runtime import Runtime
from rlhf.models.readouts import LastToken
from rlhf.models.score_shift import SHIFT, WEIGHT
from rlhf.tensor_file import TensorStream
from rlhf.trainers import normalisation
from rlhf.trainers.micro_batches import Cut
from rlhf.trainers.normalisation import Normalisation, score_sums


def test_moments_are_the_populations() -> None:
    """Scores 1, 2, 6: mean 3, variance (4 + 1 + 9)/3."""
    sums = torch.tensor([9.0, 41.0, 3.0], dtype=torch.float64)
    found = Normalisation.of(sums, unit_std=True)
    assert (found.mean, found.count) == (3.0, 3)
    assert found.std == pytest.approx((14 / 3) ** 0.5)
    assert found.gain == pytest.approx(1 / found.std)
    assert Normalisation.of(sums, unit_std=False).gain == 1.0


def test_a_large_mean_leaves_the_deviation_its_digits() -> None:
    scores = torch.tensor([1000.0, 1001.0, 1002.0], dtype=torch.float64)
    sums = torch.stack([scores.sum(), scores.square().sum(), torch.tensor(3.0, dtype=torch.float64)])
    assert Normalisation.of(sums, unit_std=True).std == pytest.approx((2 / 3) ** 0.5, rel=1e-6)


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(
        ValueError, match="scores of the reference demonstrations must be finite, their mean is"
    ):
        Normalisation.of(torch.tensor([float("nan"), float("nan"), 2.0]).double(), unit_std=False)


def test_gain_and_shift_are_applied_to_the_head_alone() -> None:
    """2·w·h + 0.5·(…): raw 3 with shift 1 becomes 0.5·(3 + 1 − 2) = 1."""
    state = {WEIGHT: torch.tensor([[3.0]]), SHIFT: torch.tensor(1.0), "other": torch.ones(2)}
    scale = Normalisation(mean=2.0, std=2.0, count=5, gain=0.5).scale(1.0)
    found = dict(scale.applied(TensorStream.of(state)))
    assert (found[WEIGHT] + found[SHIFT]).item() == 1.0
    assert found["other"] is state["other"]
    assert state[WEIGHT].item() == 3.0


@pytest.mark.parametrize("rows", [7, 8])
def test_ranks_share_the_rows_and_count_none_twice(
    toy: ModuleType, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    model, data = toy.scalar("reward"), toy.supervised_set(rows)
    whole = score_sums(model, data, LastToken(), Cut(rows=3), toy.place())
    monkeypatch.setattr(normalisation, "all_sum", lambda sums: sums)
    device = torch.device("cpu")
    parts = [
        score_sums(model, data, LastToken(), Cut(rows=2), Runtime(rank, 2, 0, device)) for rank in range(2)
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole, rtol=1e-6, atol=1e-6)
    assert whole[2] == rows
