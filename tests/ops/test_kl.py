"""Values here; the gradients are in tests/algorithms/test_gradient.py and test_fixed_points.py."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from rlhf.ops.kl import k1, k2, k3


def distributions(size: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, size, generator=generator, dtype=torch.float64).log_softmax(-1)
    return policy, reference


def test_k1_and_k3_are_unbiased_and_k2_is_not() -> None:
    policy, reference = distributions()
    exact = (policy.exp() * (policy - reference)).sum()
    for estimator in (k1, k3):
        assert abs((policy.exp() * estimator(policy, reference)).sum() - exact) < 1e-10
    assert abs((policy.exp() * k2(policy, reference)).sum() - exact) > 0.01


def test_estimators_of_one_token_are_their_definitions() -> None:
    p, q = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])  # ρ = ½
    assert k1(p, q).item() == pytest.approx(math.log(2))
    assert k2(p, q).item() == pytest.approx(math.log(2) ** 2 / 2)
    assert k3(p, q).item() == pytest.approx(0.5 - 1 + math.log(2))


# Schulman's table: q = N(0, 1) is sampled, p = N(μ, 1); bias and standard deviation over the true KL μ²/2.
@pytest.mark.parametrize(
    ("estimator", "mu", "bias", "deviation"),
    [
        (k1, 0.1, 0.0, 20.0),
        (k2, 0.1, 0.002, 1.42),
        (k3, 0.1, 0.0, 1.42),
        (k1, 1.0, 0.0, 2.0),
        (k2, 1.0, 0.25, 1.73),
        (k3, 1.0, 0.0, 1.7),
    ],
)
def test_gaussian_table(estimator, mu: float, bias: float, deviation: float) -> None:
    x = torch.linspace(-12, 12, 48_001, dtype=torch.float64)
    weight = torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi) * (x[1] - x[0])  # quadrature, no sampling
    true = mu**2 / 2
    estimate = estimator(-0.5 * x.square(), -0.5 * (x - mu).square())
    mean = (weight * estimate).sum().item()
    sd = math.sqrt((weight * (estimate - mean).square()).sum().item())
    assert mean / true - 1 == pytest.approx(bias, abs=1e-3)
    assert sd / true == pytest.approx(deviation, rel=0.01)  # the table has three digits


def test_k3_is_never_negative_and_precise_near_the_reference() -> None:
    small = torch.tensor([1e-4, -1e-4], dtype=torch.float32)
    torch.testing.assert_close(k3(small, torch.zeros(2)), torch.full((2,), 5e-9), rtol=0.05, atol=0)
    assert (k3(torch.linspace(-5, 5, 101), torch.zeros(101)) >= 0).all()


@pytest.mark.parametrize("estimator", [k1, k2, k3])
def test_estimators_are_differentiable(estimator) -> None:
    policy, reference = distributions()
    assert gradcheck(estimator, (policy.requires_grad_(), reference.requires_grad_()))
