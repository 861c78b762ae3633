from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from rlhf.kernels.linear_kl import linear_kl
from rlhf.ops.logprobs import exact_kl

N, H, V = 11, 7, 13
pytestmark = pytest.mark.usefixtures("small_tiles")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def heads() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The second one has another width."""
    policy = normal(N, H, seed=1).requires_grad_(), normal(V, H, seed=2).requires_grad_()
    return *policy, normal(N, 4, seed=3), normal(V, 4, seed=4)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.4},
    "temperature of each row": {"temperature": normal(N, seed=5).abs() + 0.3},
    "mask": {"mask": normal(N, seed=6) > 0},
    "bend": {
        "bias": normal(V, seed=7),
        "other_bias": normal(V, seed=8),
        "scale": 1.4,
        "softcap": 2.0,
        "temperature": 0.7,
    },
}
EVERY = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def expected_kl(x: Tensor, w: Tensor, x2: Tensor, w2: Tensor, logits: Any, **options: Any) -> Tensor:
    other = {**options, "bias": options.get("other_bias")}
    kl = exact_kl(logits(x, w, **options), logits(x2, w2, **other))
    return torch.where(options["mask"], kl, 0.0) if "mask" in options else kl


@EVERY
def test_values_and_gradients_are_those_of_the_whole_logits(options: dict[str, Any], logits: Any) -> None:
    hidden, weight, *other = heads()
    bias = options.get("bias")
    inputs = [hidden, weight, *([] if bias is None else [bias.requires_grad_()])]
    found = linear_kl(hidden, weight, *other, **options)
    expected = expected_kl(hidden, weight, *other, logits, **options)
    torch.testing.assert_close(found, expected)
    g = normal(N, seed=9)
    ours, theirs = (torch.autograd.grad((kl * g).sum(), inputs) for kl in (found, expected))
    for mine, exact in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, exact)


def test_finite_differences_agree() -> None:
    hidden, weight, *other = heads()
    assert gradcheck(lambda x, w: linear_kl(x, w, *other, 0.8, softcap=3.0), (hidden, weight))


def test_a_head_is_at_no_distance_from_itself() -> None:
    hidden, weight, *_ = heads()
    torch.testing.assert_close(linear_kl(hidden, weight, hidden, weight), torch.zeros(N, dtype=torch.float64))


@pytest.mark.parametrize("level", [-1000.0, 80.0])
def test_the_level_of_the_logits_does_not_matter(level: float) -> None:
    hidden, weight, other, other_weight = (x.detach().float() for x in heads())
    bias = torch.full((V,), level)
    moved = linear_kl(hidden, weight, other, other_weight, bias=bias, other_bias=-bias)
    torch.testing.assert_close(moved, linear_kl(hidden, weight, other, other_weight), rtol=1e-3, atol=1e-3)


def test_the_logits_never_exist_as_a_whole(watched: Any) -> None:
    hidden, weight = normal(40, H).requires_grad_(), normal(60, H).requires_grad_()
    linear_kl(hidden, weight, normal(40, 4), normal(60, 4)).sum().backward()
    assert watched.elements <= 60 * H


def test_vocabularies_of_two_sizes_are_refused() -> None:
    hidden, weight, other, other_weight = heads()
    with pytest.raises(ValueError, match="the vocabularies have 13 and 12 tokens"):
        linear_kl(hidden, weight, other, other_weight[:12])
