"""E20: stopping and continuing is bitwise the uninterrupted run, with everything that has state."""

from pathlib import Path

import pytest
import torch

from rlhf.algorithms.advantages import LeaveOneOut
from rlhf.algorithms.kl import AdaptiveKLInReward
from rlhf.trainers.policy_gradient import PolicyGradientTrainer
from tests.testbed import table
from tests.testbed.tree import Testbed

UPDATES, BEFORE = 12, 5


def after(trainer: PolicyGradientTrainer, updates: int) -> PolicyGradientTrainer:
    while trainer.done < updates:
        trainer.step()
    return trainer


@pytest.mark.parametrize("make", [table.ppo, lambda **kl: table.grouped(LeaveOneOut(), **kl)])
def test_continuing_with_an_adaptive_kl_is_bitwise_the_same(testbed: Testbed, make, tmp_path: Path) -> None:
    def build() -> PolicyGradientTrainer:
        kl = AdaptiveKLInReward(coef=0.2, target=1.0, horizon=2560)
        return table.trainer(testbed, make(kl=kl), updates=UPDATES)

    whole = after(build(), UPDATES)
    after(build(), BEFORE).save(tmp_path)
    resumed = build()
    resumed.load(tmp_path)
    assert resumed.state.kl_coef != 0.2
    after(resumed, UPDATES)
    assert resumed.state == whole.state
    assert torch.equal(table.logits(resumed), table.logits(whole))
    if whole.models.critic is not None:
        assert torch.equal(table.values(resumed), table.values(whole))
