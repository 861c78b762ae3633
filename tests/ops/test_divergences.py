"""Against the definitions, written with probabilities in float64, and the limits in the papers."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlhf.ops.divergences import Diverged, forward_kl, jensen_shannon, kl, reverse_kl

V = 7
BETAS = (0.1, 0.5, 0.9)


def logits(seed: int, rows: int = 5, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, V, generator=generator, dtype=torch.float64)


def kl_of(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1)


def jensen_shannon_of(p: Tensor, q: Tensor, beta: float) -> Tensor:
    """Agarwal et al. 2023, eq. 1, with P the teacher and Q the student."""
    m = beta * q + (1 - beta) * p
    return beta * kl_of(q, m) + (1 - beta) * kl_of(p, m)


CASES: dict[str, tuple[Callable[[Tensor, Tensor], Diverged], Callable[[Tensor, Tensor], Tensor]]] = {
    "forward": (forward_kl, lambda p, q: kl_of(q, p)),
    "reverse": (reverse_kl, kl_of),
    **{
        f"jensen_shannon {beta}": (
            lambda s, t, beta=beta: jensen_shannon(s, t, beta=beta),
            lambda p, q, beta=beta: jensen_shannon_of(p, q, beta),
        )
        for beta in BETAS
    },
}
EVERY = pytest.mark.parametrize(("divergence", "definition"), CASES.values(), ids=CASES)
Of = Callable[[Tensor, Tensor], Diverged]


@EVERY
def test_values_are_those_of_the_definition(divergence: Of, definition: Callable[..., Tensor]) -> None:
    z, other = logits(1), logits(2)
    found = divergence(z.log_softmax(-1), other.log_softmax(-1)).values
    torch.testing.assert_close(found, definition(z.softmax(-1), other.softmax(-1)))
    assert (found > 0).all()


@EVERY
def test_gradients_are_those_of_the_definition(divergence: Of, definition: Callable[..., Tensor]) -> None:
    z, other = logits(1).requires_grad_(), logits(2)
    (expected,) = torch.autograd.grad(definition(z.softmax(-1), other.softmax(-1)).sum(), z)
    found = divergence(z.detach().log_softmax(-1), other.log_softmax(-1)).gradient
    torch.testing.assert_close(found, expected)


@EVERY
def test_gradients_are_those_of_finite_differences(divergence: Of, definition: Callable[..., Tensor]) -> None:
    z, teacher, h = logits(3, rows=1), logits(4, rows=1).log_softmax(-1), 1e-6
    moved = h * torch.eye(V, dtype=torch.float64)
    up, down = (divergence((z + step).log_softmax(-1), teacher).values for step in (moved, -moved))
    found = divergence(z.log_softmax(-1), teacher).gradient[0]
    torch.testing.assert_close(found, (up - down) / (2 * h), rtol=1e-6, atol=1e-8)  # of the differences


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_distributions_are_at_no_distance_and_have_no_gradient(
    divergence: Of, definition: object, dtype: torch.dtype
) -> None:
    same = logits(5).to(dtype).log_softmax(-1)
    found = divergence(same, same.clone())
    assert torch.equal(found.values, torch.zeros(5, dtype=dtype))
    assert torch.equal(found.gradient, torch.zeros(5, V, dtype=dtype))


@pytest.mark.parametrize("near", [1e-3, 1e-5])
def test_jensen_shannon_over_beta_tends_to_the_forward_kl_and_the_other_end_to_the_reverse(
    near: float,
) -> None:
    student, teacher = (logits(seed, scale=0.7).log_softmax(-1) for seed in (1, 2))
    low, high = (jensen_shannon(student, teacher, beta=beta) for beta in (near, 1 - near))
    for found, limit in ((low, forward_kl(student, teacher)), (high, reverse_kl(student, teacher))):
        torch.testing.assert_close(found.values / near, limit.values, rtol=20 * near, atol=0)
        torch.testing.assert_close(found.gradient / near, limit.gradient, rtol=20 * near, atol=20 * near)


def test_jensen_shannon_at_one_half_is_symmetric_and_at_most_log_two() -> None:
    student, teacher = logits(1, scale=40.0).log_softmax(-1), logits(2, scale=40.0).log_softmax(-1)
    found = jensen_shannon(student, teacher, beta=0.5).values
    torch.testing.assert_close(found, jensen_shannon(teacher, student, beta=0.5).values)
    assert (found <= math.log(2) + 1e-12).all()
    assert (found > 0.6).any()


@EVERY
def test_logits_a_thousand_apart_stay_finite_in_float32(divergence: Of, definition: object) -> None:
    z = torch.tensor([[1000.0, 0.0, -1000.0]])
    found = divergence(z.log_softmax(-1), z.flip(1).log_softmax(-1))
    assert found.values.isfinite().all()
    assert found.gradient.isfinite().all()


def test_forward_kl_is_the_cross_entropy_less_the_entropy_of_the_teacher() -> None:
    student, teacher = logits(1).log_softmax(-1), logits(2).log_softmax(-1)
    cross = -(teacher.exp() * student).sum(-1)
    entropy = -(teacher.exp() * teacher).sum(-1)
    torch.testing.assert_close(forward_kl(student, teacher).values, cross - entropy)


def test_kl_of_two_tokens_by_pencil() -> None:
    p, q = torch.tensor([0.25, 0.75], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    torch.testing.assert_close(kl(p.log(), q.log()), torch.tensor(expected, dtype=torch.float64))
