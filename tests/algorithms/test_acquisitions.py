"""What an answer is worth: entropy and mutual information by enumeration, variance by pencil."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.acquisitions import Acquisition, Disagreement, InformationGain, Random, Uncertainty

ACTIVE = [Uncertainty(), Disagreement(), InformationGain()]


def logits(*shares: list[float]) -> Tensor:
    return torch.logit(torch.tensor(shares, dtype=torch.float64))


def test_information_gain_is_the_mutual_information_of_answer_and_model() -> None:
    """Σ over models and answers of P(m)·P(y|m)·log P(y|m)/P(y), each model as likely as the others."""
    p = torch.tensor([0.9, 0.2, 0.6], dtype=torch.float64)
    joint = torch.stack([p, 1 - p]) / 3
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    expected = (joint * (joint / independent).log()).sum()
    torch.testing.assert_close(InformationGain()(torch.logit(p)[None])[0], expected)


def test_disagreement_is_the_variance_of_the_predicted_preference() -> None:
    found = Disagreement()(logits([0.9, 0.1], [0.7, 0.7], [0.8, 0.4]))
    torch.testing.assert_close(found, torch.tensor([0.16, 0.0, 0.04], dtype=torch.float64))


def test_uncertainty_is_the_entropy_of_the_mean() -> None:
    """Of probabilities: 0.9 and 0.6 are 3/4, whatever the mean of their log-odds."""
    found = Uncertainty()(logits([0.9, 0.1], [0.25, 0.25], [0.9, 0.6]))
    of_a_quarter = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    expected = [math.log(2), of_a_quarter, of_a_quarter]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_a_coin_that_all_models_expect_teaches_nothing() -> None:
    """Where uncertainty is highest: information gain tells noise from ignorance."""
    noise, ignorance = logits([0.5, 0.5], [0.99, 0.01])
    both = torch.stack([noise, ignorance])
    assert InformationGain()(both)[0] == 0
    assert InformationGain()(both)[1] > 0.6
    assert Uncertainty()(both)[0] == pytest.approx(Uncertainty()(both)[1].item())


@pytest.mark.parametrize("acquisition", [*ACTIVE, Random()])
def test_the_order_of_the_responses_does_not_count(acquisition: Acquisition) -> None:
    gaps = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(acquisition(gaps), acquisition(-gaps))


@pytest.mark.parametrize("acquisition", ACTIVE)
def test_certain_models_that_agree_leave_nothing_to_ask(acquisition: Acquisition) -> None:
    found = acquisition(torch.tensor([[1e4, 2e4], [-1e3, -1e3]]))
    torch.testing.assert_close(found, torch.zeros(2, dtype=torch.float64))


def test_random_gives_all_the_same() -> None:
    assert Random()(torch.empty(4, 0)).tolist() == [0, 0, 0, 0]
