import pytest
import torch

from rlhf.algorithms.divergences import Divergence, ForwardKL, JensenShannon, ReverseKL
from rlhf.ops.divergences import forward_kl, jensen_shannon, reverse_kl

P = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
Q = torch.tensor([[0.3, 0.3, 0.4]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("component", "expected"),
    [
        (ForwardKL(), forward_kl(P.log(), Q.log())),
        (ReverseKL(), reverse_kl(P.log(), Q.log())),
        (JensenShannon(beta=0.3), jensen_shannon(P.log(), Q.log(), beta=0.3)),
    ],
)
def test_the_first_argument_is_the_student(component: Divergence, expected: tuple[torch.Tensor, ...]) -> None:
    found = component(P.log(), Q.log())
    assert torch.equal(found.values, expected[0])
    assert torch.equal(found.gradient, expected[1])


def test_which_way_round_each_kl_is() -> None:
    """A student that leaves out what the teacher does is far off forward, and hardly so in reverse."""
    narrow = torch.tensor([[1 - 2e-9, 1e-9, 1e-9]], dtype=torch.float64).log()
    wide = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    assert ForwardKL()(narrow, wide).values > 9
    assert ReverseKL()(narrow, wide).values < 0.7


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_the_ends_of_jensen_shannon_are_refused(beta: float) -> None:
    with pytest.raises(ValueError, match=r"JensenShannon\.beta must lie in \(0, 1\), got .* forward_kl"):
        JensenShannon(beta=beta)
