import math

import pytest
import torch

from rlhf.evaluation.bootstrap import Bootstrap
from rlhf.evaluation.calibration import bin_index, calibration

BOOTSTRAP = Bootstrap(resamples=200)


def logits(*confidences: float) -> torch.Tensor:
    """Δr whose favourite has that probability; negative where the favourite is the rejected response."""
    return torch.tensor(
        [math.copysign(math.log(abs(p) / (1 - abs(p))), p) for p in confidences], dtype=torch.float64
    )


def test_calibration_of_a_hand_worked_case() -> None:
    """Two bins: 0.62 twice, once right; 0.91, 0.93 and 0.95 right, right and wrong."""
    found = calibration(logits(0.62, -0.62, 0.91, 0.93, -0.95), BOOTSTRAP)
    filled = {round(one.low, 2): one for one in found.bins if one.pairs}
    assert set(filled) == {0.6, 0.9}
    assert [filled[0.6].pairs, filled[0.9].pairs] == [2, 3]
    assert filled[0.6].confidence == pytest.approx(0.62)
    assert filled[0.6].accuracy == pytest.approx(0.5)
    assert filled[0.9].confidence == pytest.approx(0.93)
    assert filled[0.9].accuracy == pytest.approx(2 / 3)
    assert found.ece == pytest.approx(2 / 5 * 0.12 + 3 / 5 * (0.93 - 2 / 3))
    losses = [math.log(1 / p) for p in (0.62, 0.38, 0.91, 0.93, 0.05)]
    assert found.log_loss.value == pytest.approx(sum(losses) / 5)


def test_a_tie_is_half_right_and_a_constant_reward_is_calibrated() -> None:
    found = calibration(torch.zeros(7), BOOTSTRAP)
    assert (found.bins[0].pairs, found.bins[0].confidence, found.bins[0].accuracy) == (7, 0.5, 0.5)
    assert found.ece == 0
    assert found.log_loss.value == pytest.approx(math.log(2))
    assert found.bins[1].accuracy is None


def test_an_edge_belongs_to_the_bin_below() -> None:
    edges = torch.tensor([0.5, 0.5001, 0.55, 0.5501, 0.95, 0.951, 1.0], dtype=torch.float64)
    assert bin_index(edges).tolist() == [0, 0, 0, 1, 8, 9, 9]


def test_errors_of_both_signs_in_one_bin_cancel_and_across_bins_do_not() -> None:
    inside = calibration(logits(0.96, 0.96, 0.96, -0.96), BOOTSTRAP).ece  # ¾ right of 0.96
    assert inside == pytest.approx(0.21)
    across = calibration(logits(0.6, 0.9, -0.9), BOOTSTRAP).ece  # 1 of 0.6, ½ of 0.9
    assert across == pytest.approx(1 / 3 * 0.4 + 2 / 3 * 0.4)


def test_the_ece_of_a_calibrated_reward_is_what_chance_alone_makes() -> None:
    """n pairs of one confidence p: E|k/n − p| of a binomial k, in closed form for n = 2, p = 0.8."""
    expected = 0.04 * 0.8 + 0.32 * 0.3 + 0.64 * 0.2
    found = calibration(logits(0.8, 0.8), Bootstrap(resamples=20_000))
    assert found.ece_calibrated == pytest.approx(expected, abs=0.005)  # 4 standard errors


def test_outcomes_with_the_claimed_probabilities_are_found_calibrated() -> None:
    generator = torch.Generator().manual_seed(0)
    size = 4 * torch.rand(20_000, generator=generator, dtype=torch.float64)
    right = torch.rand(20_000, generator=generator, dtype=torch.float64) < torch.sigmoid(size)
    found = calibration(torch.where(right, size, -size), Bootstrap(resamples=50))
    assert found.ece < 2 * found.ece_calibrated
    overconfident = calibration(2 * torch.where(right, size, -size), Bootstrap(resamples=50))
    assert overconfident.ece > 5 * overconfident.ece_calibrated
