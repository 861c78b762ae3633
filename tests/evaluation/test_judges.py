import pytest
import torch

from rlhf.evaluation.judges import judge_agreement
from rlhf.evaluation.pairs import wilson_interval


def test_agreement_of_a_hand_worked_case() -> None:
    rewards = torch.tensor([1.0, 2, -1, -1, 0, 0, 3, 1, -2, 1])
    verdict = torch.tensor([0.5, 1, -1, 1, 0, 1, 0, 2, 1, -1])
    found = judge_agreement("vader", rewards, verdict)
    assert found.agreed == 0.5  # rows 0, 1, 2, 4 and 7
    assert (found.low, found.high) == wilson_interval(5, 10)
    chance = 0.8 * 0.8 / 2 + 0.2 * 0.2  # two ties of ten each
    assert found.kappa == pytest.approx((0.5 - chance) / (1 - chance))
    shares = (found.both_right, found.reward_alone, found.judge_alone, found.neither)
    assert shares == pytest.approx((0.3, 0.2, 0.3, 0.2))


def test_kappa_is_that_of_the_pairs_in_both_orders() -> None:
    """Cohen's definition on the table of every pair beside its mirror image."""
    generator = torch.Generator().manual_seed(0)
    rewards, verdicts = torch.randint(-2, 4, (2, 60), generator=generator).double()
    both = [torch.cat([signs, -signs]) for signs in (rewards.sign(), verdicts.sign())]
    observed = float((both[0] == both[1]).double().mean())
    chance = sum(
        float((both[0] == kind).double().mean()) * float((both[1] == kind).double().mean())
        for kind in (-1, 0, 1)
    )
    found = judge_agreement("judge", rewards, verdicts)
    assert found.kappa == pytest.approx((observed - chance) / (1 - chance))


def test_two_constant_scorers_have_no_kappa() -> None:
    found = judge_agreement("judge", torch.zeros(4), torch.zeros(4))
    assert (found.agreed, found.kappa, found.neither) == (1.0, None, 1.0)
