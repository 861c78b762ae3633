from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.kernels import tiles
from rlhf.kernels.linear_logprobs import linear_logprobs
from rlhf.kernels.linear_token_loss import linear_token_loss
from rlhf.ops.kl import k3
from rlhf.ops.logprobs import TokenLogprobs
from rlhf.ops.policy_losses import clipped_surrogate, reinforce

N, H, V = 11, 7, 13
pytestmark = pytest.mark.usefixtures("small_tiles")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def head() -> tuple[Tensor, Tensor, Tensor]:
    targets = torch.randint(V, (N,), generator=torch.Generator().manual_seed(3))
    return normal(N, H, seed=1).requires_grad_(), normal(V, H, seed=2).requires_grad_(), targets


WEIGHTS, ADVANTAGES, OLD = normal(N, seed=4).abs(), normal(N, seed=5), -normal(N, seed=6).abs() * 3
ALL = torch.ones(N, dtype=torch.bool)
LOSSES: dict[str, Any] = {
    "SFT": lambda found: -WEIGHTS * found.logprobs,
    "REINFORCE": lambda found: WEIGHTS * reinforce(found.logprobs, ADVANTAGES, ALL),
    "clipped": lambda found: (
        WEIGHTS * clipped_surrogate(found.logprobs, OLD, ADVANTAGES, ALL, clip_low=0.2, clip_high=0.3)
    ),
    "k3": lambda found: WEIGHTS * k3(found.logprobs, OLD),
    "entropy": lambda found: -WEIGHTS * (found.logprobs + 0.1 * found.entropies.square()),
    "entropy alone": lambda found: WEIGHTS * found.entropies,
}
EVERY = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
OPTIONS: list[dict[str, Any]] = [
    {},
    {
        "temperature": normal(N, seed=7).abs() + 0.3,
        "bias": normal(V, seed=8).requires_grad_(),
        "scale": 1.3,
        "softcap": 3.0,
        "mask": normal(N, seed=9) > 0,
    },
]


@EVERY
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "all options"])
def test_one_sweep_gives_the_numbers_of_forward_and_backward(loss: Any, options: dict[str, Any]) -> None:
    hidden, weight, targets = head()
    inputs = [hidden, weight, *([options["bias"]] if options else [])]
    swept = linear_token_loss(hidden, weight, targets, token_loss=loss, **options)
    found = linear_logprobs(hidden, weight, targets, **options)
    separate = torch.where(options.get("mask", ALL), loss(found), 0.0).sum()
    torch.testing.assert_close(swept.loss, separate)
    torch.testing.assert_close(swept.logprobs, found.logprobs)
    torch.testing.assert_close(swept.entropies, found.entropies)
    for ours, expected in zip(
        torch.autograd.grad(3.0 * swept.loss, inputs),
        torch.autograd.grad(3.0 * separate, inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected)


def test_three_products(watched: Any) -> None:
    hidden, weight, targets = head()
    linear_token_loss(hidden, weight, targets, token_loss=lambda f: -f.logprobs).loss.backward()
    assert watched.multiplications == 3 * N * H * V


def test_rows_without_gradient_cost_one_product(watched: Any) -> None:
    hidden, weight, targets = head()
    counts = torch.arange(N) % 2  # 0 and 1
    linear_token_loss(hidden, weight, targets, token_loss=lambda f: counts * f.logprobs).loss.backward()
    assert watched.multiplications == (N + 2 * int(counts.sum())) * H * V
    assert (hidden.grad[counts == 0] == 0).all()


def test_one_product_without_gradients(watched: Any) -> None:
    hidden, weight, targets = (x.detach() for x in head())
    linear_token_loss(hidden, weight, targets, token_loss=LOSSES["clipped"])
    assert watched.multiplications == N * H * V


@pytest.mark.parametrize("held", [1, 13 * 8 * 3, 1 << 20])
def test_the_number_of_chunks_does_not_matter(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = head()
    expected = torch.autograd.grad(LOSSES["SFT"](linear_logprobs(hidden, weight, targets)).sum(), weight)
    monkeypatch.setattr(tiles, "CPU_SWEEP_BYTES", held)
    swept = linear_token_loss(hidden, weight, targets, token_loss=LOSSES["SFT"])
    torch.testing.assert_close(torch.autograd.grad(swept.loss, weight), expected)


def test_the_loss_has_the_shape_of_the_targets() -> None:
    hidden, weight, targets = head()
    weights = WEIGHTS[:10].reshape(2, 5)
    mask = torch.arange(10).reshape(2, 5) % 3 > 0
    arguments = (hidden[:10].reshape(2, 5, H), weight, targets[:10].reshape(2, 5))
    swept = linear_token_loss(*arguments, token_loss=lambda found: -weights * found.logprobs, mask=mask)
    expected = -(weights * linear_logprobs(*arguments, mask=mask).logprobs).sum()
    torch.testing.assert_close(swept.loss, expected)
    assert swept.logprobs.shape == (2, 5)
    assert not swept.logprobs.requires_grad


def test_infinite_loss_of_a_token_still_to_come_does_no_harm() -> None:
    hidden, weight, targets = head()
    old = torch.full(
        (N,), -1000.0, dtype=torch.float64
    )  # exp(0 − old) overflows where the log-prob is still 0

    def loss(found: TokenLogprobs) -> Tensor:
        return (found.logprobs - old + found.logprobs.detach().sign() * 1000.0).exp()

    swept = linear_token_loss(hidden, weight, targets, token_loss=loss)
    assert swept.loss.isfinite()
    assert torch.autograd.grad(swept.loss, weight)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_gives_the_numbers_of_the_two_passes(dtype: torch.dtype) -> None:
    hidden, weight, targets = head()
    hidden, weight = (x.detach().to(dtype).requires_grad_() for x in (hidden, weight))
    loss = partial(lambda weights, found: -weights * found.logprobs, WEIGHTS.float())
    swept = linear_token_loss(hidden, weight, targets, token_loss=loss)
    separate = loss(linear_logprobs(hidden, weight, targets)).sum()
    torch.testing.assert_close(swept.loss, separate)
    grads = [torch.autograd.grad(x, (hidden, weight)) for x in (swept.loss, separate)]
    for ours, expected in zip(*grads, strict=True):
        assert ours.dtype == dtype
        rounding = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {}  # of other partial sums
        torch.testing.assert_close(ours, expected, **rounding)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_near_float64_for_every_loss(loss: Any, dtype: torch.dtype) -> None:
    """The same rounded numbers, whichever head this CPU has for them."""
    hidden, weight, targets = head()
    low = [x.detach().to(dtype).requires_grad_() for x in (hidden, weight)]
    high = [x.detach().double().requires_grad_() for x in low]
    swept = linear_token_loss(*low, targets, token_loss=loss)
    expected = loss(linear_logprobs(*high, targets)).sum()
    torch.testing.assert_close(swept.loss.double(), expected, rtol=1e-4, atol=1e-4)
    grads = [torch.autograd.grad(x, inputs) for x, inputs in ((swept.loss, low), (expected, high))]
    for ours, right in zip(*grads, strict=True):
        allowed = {"rtol": 4e-2, "atol": 5e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(ours.double(), right, **allowed)


@pytest.mark.parametrize(
    "loss",
    [
        lambda found: (found.logprobs - found.logprobs.mean()).exp(),  # a sequence's ratio
        lambda found: -torch.nn.functional.logsigmoid(found.logprobs - found.logprobs.flip(0)),  # a pair
        lambda found: found.entropies * found.entropies.sum(),
    ],
)
def test_a_loss_that_couples_tokens_is_refused(loss: Any) -> None:
    with pytest.raises(ValueError, match="token_loss couples tokens"):
        linear_token_loss(*head(), token_loss=loss)


def test_a_loss_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"token_loss gave shape \(\), expected \(11,\)"):
        linear_token_loss(*head(), token_loss=lambda found: found.logprobs.sum())


def test_gradients_are_handed_out_once() -> None:
    swept = linear_token_loss(*head(), token_loss=LOSSES["SFT"])
    swept.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="already handed out"):
        swept.loss.backward()


def test_a_loss_without_gradient_gives_zeros() -> None:
    hidden, weight, targets = head()
    swept = linear_token_loss(hidden, weight, targets, token_loss=lambda found: torch.ones(N))
    swept.loss.backward()
    assert float(swept.loss.detach()) == N
    assert weight.grad is not None
    assert not weight.grad.any()


def test_no_tokens_are_no_loss_and_zero_gradients() -> None:
    hidden, weight, targets = head()
    swept = linear_token_loss(hidden, weight, targets, token_loss=LOSSES["SFT"], mask=~ALL)
    swept.loss.backward()
    assert float(swept.loss.detach()) == 0.0
    assert hidden.grad is not None
    assert weight.grad is not None
    assert not hidden.grad.any()
    assert not weight.grad.any()
