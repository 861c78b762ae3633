from pathlib import Path

import pytest

from rlhf.trainers.progress import load_progress, save_progress


def test_numbers_come_back_exactly(tmp_path: Path) -> None:
    values = {"done": 3, "kl_coef": 0.1 + 0.2, "small": 5e-324}
    save_progress(tmp_path, values)
    assert load_progress(tmp_path, set(values)) == values


def test_another_stages_numbers_are_refused(tmp_path: Path) -> None:
    save_progress(tmp_path, {"done": 3})
    message = r"holds \['done'\], but this stage continues from \['kl_coef', 'rollouts'\]"
    with pytest.raises(ValueError, match=message):
        load_progress(tmp_path, {"rollouts", "kl_coef"})
