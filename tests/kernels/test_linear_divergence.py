from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.kernels.linear_divergence import OtherHead, SweptDivergence, linear_divergence
from rlhf.kernels.linear_token_loss import linear_token_loss
from rlhf.ops.divergences import Diverged, forward_kl, jensen_shannon, reverse_kl
from rlhf.ops.logprobs import entropy, exact_kl, logprobs_and_entropies

N, H, V = 11, 7, 13
pytestmark = pytest.mark.usefixtures("small_tiles")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def halves(student: Tensor, teacher: Tensor) -> Diverged:
    return jensen_shannon(student, teacher, beta=0.3)


DIVERGENCES = {"forward": forward_kl, "reverse": reverse_kl, "jensen_shannon": halves}
TARGETS = torch.arange(N) * 5 % V
WEIGHTS, TARGET_WEIGHTS = normal(N, seed=9).abs(), normal(N, seed=10).abs()
OTHER: dict[str, Any] = {"hidden": normal(N, 4, seed=3), "weight": normal(V, 4, seed=4)}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.4},
    "temperature of each row": {"temperature": normal(N, seed=5).abs() + 0.3},
    "mask": {"mask": normal(N, seed=6) > 0},
    "bend": {"bias": normal(V, seed=7), "scale": 1.4, "softcap": 2.0, "temperature": 0.7},
}
BENT = {"bias": normal(V, seed=8), "scale": 0.6, "softcap": 3.0}
EVERY = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
ANY = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)


def head() -> tuple[Tensor, Tensor]:
    return normal(N, H, seed=1).requires_grad_(), normal(V, H, seed=2).requires_grad_()


def other(*, bent: bool = False) -> OtherHead:
    how = BENT if bent else {"bias": None, "scale": 1.0, "softcap": None}
    return OtherHead(**OTHER, **how)


def swept(hidden: Tensor, weight: Tensor, divergence: Any = reverse_kl, **options: Any) -> SweptDivergence:
    temperature = options.pop("temperature", 1.0)
    choices = {"other": other(), "divergence": divergence, "weights": WEIGHTS} | options
    return linear_divergence(hidden, weight, TARGETS, temperature, **choices)


def values_of(divergence: Any, z: Tensor, teacher: Tensor) -> Tensor:
    """With a gradient by autograd: from probabilities, not from `rlhf.ops.divergences`."""
    p, q = z.softmax(-1), teacher.softmax(-1)
    kl = {"forward_kl": (q * (q / p).log()).sum(-1), "reverse_kl": (p * (p / q).log()).sum(-1)}
    m = 0.3 * q + 0.7 * p
    mixed = 0.3 * (q * (q / m).log()).sum(-1) + 0.7 * (p * (p / m).log()).sum(-1)
    return kl.get(divergence.__name__, mixed)


@EVERY
@ANY
def test_loss_and_gradients_are_those_of_the_whole_logits(
    options: dict[str, Any], divergence: Any, logits: Any
) -> None:
    hidden, weight = head()
    bent = "softcap" in options
    bias = options.get("bias")
    inputs = [hidden, weight, *([] if bias is None else [bias.requires_grad_()])]
    second = other(bent=bent)
    found = swept(
        hidden, weight, divergence, **{**options, "other": second, "target_weights": TARGET_WEIGHTS}
    )
    z = logits(hidden, weight, **options)
    at = {"temperature": options.get("temperature", 1.0)}
    teacher = logits(second.hidden, second.weight, **(BENT | at if bent else at))
    own = z.log_softmax(-1).gather(1, TARGETS[:, None])[:, 0]
    divergences = values_of(divergence, z, teacher)
    kept = options.get("mask", torch.ones(N, dtype=torch.bool))
    expected = torch.where(kept, WEIGHTS * divergences - TARGET_WEIGHTS * own, 0.0).sum()
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(found.divergences, torch.where(kept, divergences, 0.0))
    torch.testing.assert_close(found.forward_kl, torch.where(kept, exact_kl(teacher, z), 0.0))
    torch.testing.assert_close(found.reverse_kl, torch.where(kept, exact_kl(z, teacher), 0.0))
    torch.testing.assert_close(found.logprobs, torch.where(kept, own, 0.0))
    torch.testing.assert_close(
        found.other_logprobs, torch.where(kept, logprobs_and_entropies(teacher, TARGETS).logprobs, 0.0)
    )
    torch.testing.assert_close(found.entropies, torch.where(kept, entropy(z), 0.0))
    torch.testing.assert_close(found.other_entropies, torch.where(kept, entropy(teacher), 0.0))
    ours, theirs = (torch.autograd.grad(1.7 * loss, inputs) for loss in (found.loss, expected))
    for mine, exact in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, exact)


@ANY
def test_finite_differences_agree(divergence: Any) -> None:
    inputs = head()

    def loss() -> Tensor:
        bent = {"temperature": 0.8, "softcap": 3.0, "target_weights": TARGET_WEIGHTS}
        return swept(*inputs, divergence, **bent).loss

    found = torch.autograd.grad(loss(), inputs)
    for tensor, gradient in zip(inputs, found, strict=True):
        for place in ((0, 0), (3, 5), (10, 6)):
            at = []
            for h in (1e-6, -1e-6):
                with torch.no_grad():
                    tensor[place] += h
                    at.append(float(loss()))
                    tensor[place] -= h
            assert gradient[place] == pytest.approx((at[0] - at[1]) / 2e-6, rel=1e-5, abs=1e-7)


@ANY
def test_a_head_is_at_no_distance_from_itself_and_has_no_gradient(divergence: Any) -> None:
    for dtype in (torch.float32, torch.float64):
        hidden, weight = (x.detach().to(dtype).requires_grad_() for x in head())
        same = OtherHead(hidden=hidden, weight=weight, bias=None, scale=1.0, softcap=None)
        found = swept(hidden, weight, divergence, other=same)
        assert torch.equal(found.divergences, torch.zeros(N, dtype=dtype))
        for gradient in torch.autograd.grad(found.loss, (hidden, weight)):
            assert torch.equal(gradient, torch.zeros_like(gradient))


def test_the_other_head_gets_no_gradient() -> None:
    hidden, weight = head()
    second = other()
    second.hidden, second.weight = (x.clone().requires_grad_() for x in (second.hidden, second.weight))
    swept(hidden, weight, other=second).loss.backward()
    assert hidden.grad is not None
    assert second.hidden.grad is None
    assert second.weight.grad is None


def test_without_a_divergence_it_is_the_log_prob_loss() -> None:
    hidden, weight = head()
    found = swept(hidden, weight, weights=torch.zeros(N), target_weights=TARGET_WEIGHTS)
    plain = linear_token_loss(
        hidden, weight, TARGETS, token_loss=lambda seen: -TARGET_WEIGHTS * seen.logprobs
    )
    torch.testing.assert_close(found.loss, plain.loss)
    for ours, theirs in zip(
        torch.autograd.grad(found.loss, (hidden, weight)),
        torch.autograd.grad(plain.loss, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("level", [-1000.0, 80.0])
def test_the_level_of_the_logits_does_not_matter(level: float) -> None:
    hidden, weight = (x.detach().float() for x in head())
    second = {name: x.float() for name, x in OTHER.items()}
    found = []
    for shift in (0.0, level):
        bias = torch.full((V,), shift)
        moved = OtherHead(**second, bias=-bias, scale=1.0, softcap=None)
        found.append(swept(hidden, weight, other=moved, bias=bias, weights=WEIGHTS.float()).divergences)
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


def test_bfloat16_is_as_near_as_its_inputs_allow() -> None:
    hidden, weight = (x.detach().bfloat16().requires_grad_() for x in head())
    narrow = {name: x.bfloat16() for name, x in OTHER.items()}
    exact = {name: x.double() for name, x in narrow.items()}
    heads = [OtherHead(**x, bias=None, scale=1.0, softcap=None) for x in (narrow, exact)]
    found = swept(hidden, weight, other=heads[0], weights=WEIGHTS.float())
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    expected = swept(*wide, other=heads[1])
    assert found.divergences.dtype == torch.float32
    torch.testing.assert_close(found.divergences.double(), expected.divergences, rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad(found.loss, (hidden, weight))
    theirs = torch.autograd.grad(expected.loss, wide)
    for mine, exactly in zip(ours, theirs, strict=True):
        gap = (mine.double() - exactly).norm() / exactly.norm()
        assert gap < 0.01  # bfloat16 rounds by 2⁻⁹


def test_the_logits_never_exist_as_a_whole(watched: Any) -> None:
    hidden, weight = normal(40, H).requires_grad_(), normal(60, H).requires_grad_()
    second = OtherHead(hidden=normal(40, 4), weight=normal(60, 4), bias=None, scale=1.0, softcap=None)
    linear_divergence(
        hidden,
        weight,
        torch.zeros(40, dtype=torch.int64),
        other=second,
        divergence=reverse_kl,
        weights=torch.ones(40),
    ).loss.backward()
    assert watched.elements <= 60 * H


def test_nothing_to_compare_has_no_gradient_and_a_graph() -> None:
    hidden, weight = head()
    found = swept(hidden, weight, mask=torch.zeros(N, dtype=torch.bool))
    assert found.loss == 0
    assert all((g == 0).all() for g in torch.autograd.grad(found.loss, (hidden, weight)))


def test_without_grad_nothing_is_made_for_a_backward(watched: Any) -> None:
    hidden, weight = head()
    with torch.no_grad():
        found = swept(hidden, weight)
    assert not found.loss.requires_grad
    assert watched.multiplications == N * V * (H + 4)  # the two products of the logits alone


def test_gradients_are_handed_out_once() -> None:
    loss = swept(*head()).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="already handed out"):
        loss.backward()


def test_vocabularies_of_two_sizes_are_refused() -> None:
    hidden, weight = head()
    with pytest.raises(ValueError, match="the vocabularies have 12 and 13 tokens"):
        swept(hidden, weight[:12])
