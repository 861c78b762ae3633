from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from rlhf.kernels.cpu_products import multiplies
from rlhf.kernels.linear_logprobs import linear_logprobs, linear_token_logprobs

N, H, V = 11, 7, 13  # tiles of five rows and twelve columns: neither divides
pytestmark = pytest.mark.usefixtures("small_tiles")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def head(rows: int = N, columns: int = V, width: int = H) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    targets = torch.randint(columns, (rows,), generator=generator)
    hidden, weight = normal(rows, width, seed=1), normal(columns, width, seed=2)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.3},
    "temperature of each row": {"temperature": normal(N, seed=4).abs() + 0.3},
    "bias": {"bias": normal(V, seed=5)},
    "scale": {"scale": 0.25},
    "cap": {"softcap": 2.0},
    "mask": {"mask": normal(N, seed=6) > 0},
    "nothing kept": {"mask": torch.zeros(N, dtype=torch.bool)},
    "all": {
        "temperature": normal(N, seed=4).abs() + 0.3,
        "bias": normal(V, seed=5),
        "scale": 1.7,
        "softcap": 3.0,
        "mask": normal(N, seed=6) > 0,
    },
}
EVERY = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
SHAPES = pytest.mark.parametrize(
    ("rows", "columns", "width"), [(1, 1, 1), (1, 13, 3), (5, 12, 4), (6, 24, 9), (17, 67, 5), (64, 2, 8)]
)


@EVERY
def test_values_are_those_of_the_whole_logits(options: dict[str, Any], oracle: Any) -> None:
    found, expected = linear_logprobs(*head(), **options), oracle(*head(), **options)
    torch.testing.assert_close(found.logprobs, expected.logprobs)
    torch.testing.assert_close(found.entropies, expected.entropies)
    torch.testing.assert_close(linear_token_logprobs(*head(), **options), expected.logprobs)


@EVERY
@pytest.mark.parametrize("kind", ["both", "logprobs", "entropies"])
def test_gradients_are_those_of_the_whole_logits(options: dict[str, Any], kind: str, oracle: Any) -> None:
    g, h = normal(N, seed=7) * (kind != "entropies"), normal(N, seed=8) * (kind != "logprobs")
    g[2] = h[2] = 0.0  # a row that takes no part
    gradients = []
    for measure in (linear_logprobs, oracle):
        hidden, weight, targets = head()
        bias = options.get("bias")
        inputs = [hidden, weight, *([] if bias is None else [bias.requires_grad_()])]
        found = measure(hidden, weight, targets, **options)
        parts = {"logprobs": (found.logprobs * g).sum(), "entropies": (found.entropies * h).sum()}
        loss = sum(part for name, part in parts.items() if kind in (name, "both"))
        gradients.append(torch.autograd.grad(loss, inputs))
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected)


@SHAPES
def test_no_shape_needs_to_fit_the_tiles(rows: int, columns: int, width: int, oracle: Any) -> None:
    g, h = normal(rows, seed=7), normal(rows, seed=8)
    results = []
    for measure in (linear_logprobs, oracle):
        hidden, weight, targets = head(rows, columns, width)
        found = measure(hidden, weight, targets)
        loss = (found.logprobs * g + found.entropies * h).sum()
        results.append((*found, *torch.autograd.grad(loss, (hidden, weight))))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def test_finite_differences_agree() -> None:
    hidden, weight, targets = head()
    bias = normal(V, seed=5).requires_grad_()
    assert gradcheck(
        lambda x, w, b: tuple(linear_logprobs(x, w, targets, 0.7, bias=b, scale=1.3, softcap=3.0)),
        (hidden, weight, bias),
    )


def test_by_hand() -> None:
    # logits (0, ln 3): probabilities 1/4 and 3/4
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [3.0]]).log1p()
    weight[1] = torch.tensor(3.0).log()
    found = linear_logprobs(hidden, weight, torch.tensor([0]))
    quarter, rest = torch.tensor(0.25), torch.tensor(0.75)
    torch.testing.assert_close(found.logprobs, quarter.log().reshape(1))
    torch.testing.assert_close(found.entropies, -(quarter * quarter.log() + rest * rest.log()).reshape(1))


def test_batches_of_any_shape_come_back_in_it(oracle: Any) -> None:
    hidden, weight, targets = head(12)
    mask = (normal(12, seed=6) > 0).reshape(3, 4)
    found = linear_logprobs(hidden.reshape(3, 4, H), weight, targets.reshape(3, 4), mask=mask)
    expected = oracle(hidden, weight, targets, mask=mask.flatten())
    torch.testing.assert_close(found.logprobs, expected.logprobs.reshape(3, 4))
    torch.testing.assert_close(found.entropies, expected.entropies.reshape(3, 4))


def test_inputs_need_not_be_contiguous_and_stay_as_they_were(oracle: Any) -> None:
    hidden, weight, targets = normal(H, 2 * N, seed=1).t()[::2], normal(H, V, seed=2).t(), head(2 * N + 1)[2]
    copies = hidden.clone(), weight.clone(), targets.clone()
    hidden.requires_grad_()
    weight.requires_grad_()
    found = linear_logprobs(hidden, weight, targets[1::2], temperature=2.0)
    found.logprobs.sum().backward()
    torch.testing.assert_close(
        found.logprobs, oracle(copies[0], copies[1], copies[2][1::2], temperature=2.0).logprobs
    )
    for now, before in zip((hidden, weight, targets), copies, strict=True):
        assert torch.equal(now, before)


def test_no_tokens_give_no_results_and_zero_gradients() -> None:
    hidden, weight = torch.zeros(0, H, requires_grad=True), torch.ones(V, H, requires_grad=True)
    bias = torch.ones(V, requires_grad=True)
    found = linear_logprobs(hidden, weight, torch.zeros(0, dtype=torch.int64), bias=bias)
    (found.logprobs.sum() + found.entropies.sum()).backward()
    assert found.logprobs.shape == found.entropies.shape == (0,)
    assert weight.grad is not None
    assert bias.grad is not None
    assert not weight.grad.any()
    assert not bias.grad.any()


def test_masked_tokens_may_hold_anything() -> None:
    hidden, weight, targets = (x.detach() for x in head())
    mask = torch.arange(N) < 6
    clean = linear_logprobs(hidden, weight, targets, mask=mask)
    hidden[~mask] = torch.nan
    targets[~mask] = -100
    weight.requires_grad_()
    found = linear_logprobs(hidden, weight, targets, mask=mask)
    torch.testing.assert_close(found.logprobs, clean.logprobs)
    found.logprobs.sum().backward()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("level", [-1000.0, -80.0, 80.0, 1000.0])
def test_the_level_of_all_logits_does_not_matter(level: float, oracle: Any) -> None:
    hidden, weight, targets = (x.detach().float() if x.is_floating_point() else x for x in head())
    found = linear_logprobs(hidden, weight, targets, bias=torch.full((V,), level))
    rounded = (hidden @ weight.t() + level).double()  # the float32 logits themselves
    expected = oracle(rounded, torch.eye(V, dtype=torch.float64), targets)
    torch.testing.assert_close(found.logprobs.double(), expected.logprobs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.entropies.double(), expected.entropies, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spread", [0.0, 1.0, 20.0, 80.0])
def test_float32_is_as_exact_as_float32_logits_allow(spread: float, oracle: Any) -> None:
    signs = normal(N, V, seed=9).sign() * spread  # peaked, flat, all of |z| = 80
    weight, targets = torch.eye(V), head()[2]
    hidden, exact = signs.float().requires_grad_(), signs.clone().requires_grad_()
    g, h = normal(N, seed=7), normal(N, seed=8)
    found, expected = linear_logprobs(hidden, weight, targets), oracle(exact, weight.double(), targets)
    torch.testing.assert_close(found.logprobs.double(), expected.logprobs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.entropies.double(), expected.entropies, rtol=1e-6, atol=1e-6)
    (found.logprobs * g + found.entropies * h).sum().backward()
    (expected.logprobs * g + expected.entropies * h).sum().backward()
    torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)


def test_near_certain_tokens_keep_their_small_loss(oracle: Any) -> None:
    """Target and normaliser from the same rounded logits: D11."""
    hidden = torch.zeros(4, V, dtype=torch.bfloat16)
    hidden[torch.arange(4), torch.arange(4)] = torch.tensor([8.0, 12.0, 16.03, 24.1]).bfloat16()
    weight = torch.eye(V, dtype=torch.bfloat16)
    found = linear_token_logprobs(hidden, weight, torch.arange(4))
    expected = oracle(hidden.double(), weight.double(), torch.arange(4)).logprobs
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)  # float32 ends there


def errors(measure: Any, dtype: torch.dtype, oracle: Any, rows: int, columns: int) -> list[float]:
    """Largest error of log-probs, entropies, d hidden and d weight against float64 on the same numbers."""
    hidden, weight, targets = head(rows, columns, 32)
    hidden, weight = (3.0 * hidden.detach()).to(dtype), (weight.detach() / 3.0).to(dtype)
    g, h = normal(rows, seed=7), normal(rows, seed=8)
    results = []
    for function, kind in ((measure, dtype), (oracle, torch.float64)):
        x, w = (t.clone().to(kind).requires_grad_() for t in (hidden, weight))
        found = function(x, w, targets)
        loss = (found.logprobs * g + found.entropies * h).sum()
        results.append((*found, *torch.autograd.grad(loss, (x, w))))
    return [
        float((ours.detach().double() - exact.detach()).abs().max())
        for ours, exact in zip(*results, strict=True)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_are_no_larger_than_those_of_the_whole_logits(dtype: torch.dtype, oracle: Any) -> None:
    ours = errors(linear_logprobs, dtype, oracle, 61, 307)
    naive = errors(lambda x, w, y: oracle((x @ w.t()).float(), torch.eye(307), y), dtype, oracle, 61, 307)
    for mine, theirs in zip(ours, naive, strict=True):
        assert mine <= 1.5 * theirs  # another order of additions


def test_errors_do_not_grow_with_the_number_of_tiles(monkeypatch: pytest.MonkeyPatch, oracle: Any) -> None:
    many = errors(linear_logprobs, torch.bfloat16, oracle, 64, 1024)  # hundreds of tiles of 64 logits
    monkeypatch.setattr("rlhf.kernels.tiles.CPU_TILE", 1 << 20)
    monkeypatch.setattr("rlhf.kernels.tiles.CPU_BLOCK", 1 << 20)
    monkeypatch.setattr("rlhf.kernels.tiles.CPU_ROWS", 4096)
    one = errors(linear_logprobs, torch.bfloat16, oracle, 64, 1024)
    for more, fewer in zip(many, one, strict=True):
        assert more <= 1.5 * fewer


def test_large_upstream_gradients_lose_no_token(oracle: Any) -> None:
    """A tile is never skipped for its small probabilities: entropy's gradient there is not small."""
    gradients = []
    for measure in (linear_logprobs, oracle):
        weight = torch.zeros(4096, 1, dtype=torch.float64, requires_grad=True)
        found = measure(torch.ones(1, 1, dtype=torch.float64), weight, torch.tensor([5]))
        (1e4 * found.logprobs + 1e4 * found.entropies).sum().backward()
        gradients.append(weight.grad)
    torch.testing.assert_close(*gradients)
    assert (gradients[0] != 0).all()


def test_two_runs_are_bit_identical() -> None:
    runs = []
    for _ in range(2):
        hidden, weight, targets = head()
        found = linear_logprobs(hidden, weight, targets)
        runs.append(
            (*found, *torch.autograd.grad(found.logprobs.sum() + found.entropies.sum(), (hidden, weight)))
        )
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_logits_never_exist_as_a_whole(watched: Any) -> None:
    hidden, weight, targets = head(60, 90)
    linear_logprobs(hidden, weight, targets).logprobs.sum().backward()
    assert watched.elements <= max(hidden.numel(), weight.numel())


@pytest.mark.parametrize(
    ("frozen", "products"), [((), 4), (("weight",), 3), (("hidden",), 3), (("hidden", "weight"), 1)]
)
def test_four_products_less_those_that_nobody_wants(frozen: Any, products: int, watched: Any) -> None:
    hidden, weight, targets = head()
    inputs = {"hidden": hidden, "weight": weight}
    for name in frozen:
        inputs[name] = inputs[name].detach()
    found = linear_logprobs(inputs["hidden"], inputs["weight"], targets)
    if products > 1:
        found.logprobs.sum().backward()
    assert watched.multiplications == products * N * H * V


def test_rows_without_gradient_cost_no_backward_and_masked_ones_nothing(watched: Any) -> None:
    hidden, weight, targets = head(20)
    found = linear_logprobs(hidden, weight, targets, mask=torch.arange(20) < 12)
    (found.logprobs * (torch.arange(20) % 2)).sum().backward()
    assert watched.multiplications == (12 + 3 * 6) * H * V


def test_bfloat16_makes_no_float32_product(watched: Any) -> None:
    if not multiplies(narrow=True):
        pytest.skip("no compiled head: factors are widened instead")
    hidden, weight = normal(N, 8).bfloat16().requires_grad_(), normal(V, 8).bfloat16().requires_grad_()
    linear_logprobs(hidden, weight, head()[2]).logprobs.sum().backward()
    assert watched.float32_products == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_results_are_wide_and_gradients_in_the_dtype_of_the_inputs(dtype: torch.dtype) -> None:
    hidden, weight = normal(N, H).to(dtype).requires_grad_(), normal(V, H).to(dtype).requires_grad_()
    bias = normal(V).to(dtype).requires_grad_()
    found = linear_logprobs(hidden, weight, head()[2], bias=bias)
    assert found.logprobs.dtype == found.entropies.dtype == torch.promote_types(dtype, torch.float32)
    (found.logprobs + found.entropies).sum().backward()
    assert [x.grad.dtype for x in (hidden, weight, bias)] == [dtype] * 3


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "width": ({"weight": torch.zeros(V, H + 1)}, r"hidden has shape \(11, 7\) and weight \(13, 8\)"),
    "dtype": ({"weight": torch.zeros(V, H).bfloat16()}, "hidden is torch.float32 and weight torch.bfloat16"),
    "targets": (
        {"targets": torch.zeros(3, dtype=torch.int64)},
        r"targets has shape \(3,\), expected \(11,\)",
    ),
    "int32": (
        {"targets": torch.zeros(N, dtype=torch.int32)},
        "targets are torch.int32, expected torch.int64",
    ),
    "high": ({"targets": torch.full((N,), V)}, r"targets run from 13 to 13, expected \[0, 13\)"),
    "low": ({"targets": torch.full((N,), -1)}, r"targets run from -1 to -1, expected \[0, 13\)"),
    "bias": ({"bias": torch.zeros(3)}, r"bias has shape \(3,\), expected \(13,\)"),
    "mask": ({"mask": torch.zeros(3, dtype=torch.bool)}, r"mask has shape \(3,\), expected \(11,\)"),
    "cold": ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
    "a cold row": (
        {"temperature": torch.arange(N)},
        "every temperature must be positive and finite, got 0.0",
    ),
    "cap": ({"softcap": -1.0}, "softcap must be positive and finite, got -1.0"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "hidden": torch.zeros(N, H),
        "weight": torch.zeros(V, H),
        "targets": torch.zeros(N, dtype=torch.int64),
    }
    with pytest.raises(ValueError, match=message):
        linear_logprobs(**{**arguments, **change})
