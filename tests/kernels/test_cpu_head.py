"""The same oracle for torch's operations and for the compiled head, in float32 and bfloat16."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.kernels import cpu_build, cpu_head, cpu_products
from rlhf.kernels.linear_logprobs import linear_logprobs
from rlhf.kernels.linear_token_loss import linear_token_loss
from rlhf.kernels.projection import Projection
from rlhf.kernels.row_logprobs import row_logprobs
from rlhf.kernels.rows import Reading

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
SHAPES = [
    (5, 8, 29),
    (70, 34, 1300),
    (1, 2, 1),
    (130, 6, 257),
    (40, 1024, 2500),  # more columns than are packed at once
    (3, 7, 40),
]  # the last for torch alone in bf16
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cap and scale": {"softcap": 4.0, "scale": 1.7, "temperature": 0.7},
    "bias and temperatures": {"bias": True, "temperature": True},
}


@pytest.fixture(params=["torch", "C++"])
def back_end(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Takes the compiled head away, or skips where there is none."""
    if request.param == "torch":
        for module in (cpu_head, cpu_products):
            monkeypatch.setattr(module, "library", lambda: None)
        monkeypatch.setattr(cpu_products, "multiplies", lambda narrow: False)
        monkeypatch.setattr(cpu_head, "multiplies", lambda narrow: False)
    else:
        compiled(request.node.callspec.params["dtype"])
    return str(request.param)


def compiled(dtype: torch.dtype) -> None:
    """Skips where products of this dtype have no C++."""
    if not cpu_products.multiplies(narrow=dtype == torch.bfloat16):
        pytest.skip("no compiler, or not a CPU for it")


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(rows: int, width: int, columns: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = normal(rows, width, seed=1), 3 * normal(columns, width, seed=2) / width**0.5
    targets = torch.randint(columns, (rows,), generator=torch.Generator().manual_seed(3))
    return hidden.to(dtype), weight.to(dtype), targets


def results(measure: Callable[..., Any], hidden: Tensor, weight: Tensor, *rest: Any, **options: Any) -> Any:
    """Log-probs, entropies, d hidden and d weight for random upstream gradients, in float64."""
    x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    found = measure(x, w, *rest, **options)
    g, h = normal(2, len(hidden), seed=4)
    gradients = torch.autograd.grad((found.logprobs * g + found.entropies * h).sum(), (x, w))
    return [part.detach().double() for part in (*found, *gradients)]


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.usefixtures("back_end")
def test_both_give_the_numbers_of_float64(
    shape: tuple[int, int, int], dtype: torch.dtype, options: dict[str, Any], oracle: Any
) -> None:
    hidden, weight, targets = problem(*shape, dtype)
    options = dict(options)
    if "bias" in options:
        options["bias"] = normal(shape[2], seed=5).to(dtype)
        options["temperature"] = 0.5 + normal(shape[0], seed=6).abs()
    ours = results(linear_logprobs, hidden, weight, targets, **options)
    if "bias" in options:
        options["bias"] = options["bias"].double()
    exact = results(oracle, hidden.double(), weight.double(), targets, **options)
    for place, (mine, true) in enumerate(zip(ours, exact, strict=True)):
        rounding = 0.02 if place > 1 and dtype == torch.bfloat16 else 1e-5  # of d, and of the results
        assert (mine - true).abs().max() <= rounding * max(float(true.abs().max()), 1.0)


@DTYPES
@pytest.mark.parametrize("level", [-1000.0, -80.0])
def test_what_all_logits_have_in_common_drowns_no_gradient(
    level: float, dtype: torch.dtype, back_end: str, oracle: Any
) -> None:
    hidden, weight, targets = problem(40, 16, 1500, dtype)
    hidden[:, -1], weight[:, -1] = 1.0, level
    ours = results(linear_logprobs, hidden, weight, targets)
    exact = results(oracle, hidden.double(), weight.double(), targets)
    rounding = 0.02 if dtype == torch.bfloat16 else 2e-4  # of which the last feature would cost 1000 times
    if back_end == "C++" and dtype == torch.float32:
        rounding = 2e-6  # which a logit of −1000 is not read to
    for mine, true in zip(ours, exact, strict=True):
        assert (mine - true).abs().max() <= rounding * max(float(true.abs().max()), 1.0)


@pytest.mark.parametrize("dtype", [torch.float32])
@pytest.mark.usefixtures("back_end")
def test_what_all_logits_have_in_common_is_one_number_in_forward_and_backward(
    dtype: torch.dtype, oracle: Any
) -> None:
    """Also where the backward has some of the rows, and where states lie column by column."""
    hidden, weight, targets = problem(40, 16, 1500, dtype)
    hidden[:, -1], weight[:, -1] = 1.0, -1000.0
    some = torch.arange(40) % 3 == 0

    def measure(x: Tensor, w: Tensor, *rest: Any) -> Any:
        found = linear_logprobs(x, w, *rest) if x.dtype == dtype else oracle(x, w, *rest)
        return type(found)(found.logprobs * some, found.entropies * some)

    ours = results(measure, hidden.t().contiguous().t(), weight, targets)
    for mine, true in zip(ours, results(measure, hidden.double(), weight.double(), targets), strict=True):
        assert (mine - true).abs().max() <= 2e-4 * max(float(true.abs().max()), 1.0)


@pytest.mark.parametrize(
    ("common", "softcap", "taken"),
    [(2.0, None, True), (0.3, None, False), (2.0, 30.0, False)],
    ids=["much", "little", "seen by a cap"],
)
def test_the_common_row_is_taken_where_rows_have_more_in_common_than_not(
    common: float, softcap: float | None, taken: bool
) -> None:
    weight = (normal(300, 64, seed=1) / 8 + common * normal(64, seed=2) / 8).float()
    reading = Reading(targets=torch.zeros(1, dtype=torch.int64), cooling=1.0, scale=1.0, softcap=softcap)
    head = Projection(hidden=weight[:1], weight=weight, bias=None, reading=reading)
    assert (head.common_row() is not None) == taken


def test_sums_over_the_width_are_nearer_than_one_term_after_the_other(oracle: Any) -> None:
    compiled(torch.float32)
    hidden, weight, targets = problem(60, 1024, 300, torch.float32)
    logits = torch.zeros(60, 300)
    for x, w in zip(hidden.unbind(1), weight.unbind(1), strict=True):
        logits += torch.outer(x, w)
    exact = oracle(hidden.double(), weight.double(), targets).logprobs
    found = linear_logprobs(hidden, weight, targets).logprobs.double()
    plain = logits.double().log_softmax(1).gather(1, targets.unsqueeze(1)).squeeze(1)
    assert (found - exact).square().mean() < (plain - exact).square().mean() / 9  # a third of the error


def test_sums_over_the_rows_are_nearer_than_one_row_after_the_other(oracle: Any) -> None:
    compiled(torch.float32)
    hidden, weight, targets = problem(2000, 8, 64, torch.float32)
    exact = results(oracle, hidden.double(), weight.double(), targets)[3]
    x, logits = hidden.double(), (hidden.double() @ weight.double().t()).requires_grad_()
    logprobs = logits.log_softmax(1)
    g, h = normal(2, len(hidden), seed=4)
    heads = (logprobs.gather(1, targets.unsqueeze(1)).squeeze(1), -(logprobs.exp() * logprobs).sum(1))
    (d,) = torch.autograd.grad(heads, logits, (g, h))
    plain = torch.zeros(64, 8)
    for row, state in zip(d.float(), x.float(), strict=True):
        plain += torch.outer(row, state)
    ours = results(linear_logprobs, hidden, weight, targets)[3]
    assert (ours - exact).square().mean() < (plain - exact).square().mean() / 4  # half the error


def test_a_gradient_through_the_flat_end_of_a_cap_is_right_to_its_own_last_digits(oracle: Any) -> None:
    """1 − tanh² of 5 to 9 is 2·10⁻⁴ to 6·10⁻⁸, of which one minus a square in float32 leaves nothing."""
    compiled(torch.float32)
    hidden, weight = torch.ones(1, 2), torch.linspace(5.0, 9.0, 2 * 200).view(200, 2) / 2
    target = torch.tensor([7])
    ours = results(linear_logprobs, hidden, weight, target, softcap=1.0)[3]
    exact = results(oracle, hidden.double(), weight.double(), target, softcap=1.0)[3]
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=0.0)


@DTYPES
@pytest.mark.parametrize("rows", [10, 60], ids=["one chunk", "several"])
@pytest.mark.usefixtures("back_end")
def test_one_sweep_gives_the_gradients_of_two_passes(
    rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf.kernels.tiles.CPU_SWEEP_BYTES", 4 * 700 * 25)
    monkeypatch.setattr("rlhf.kernels.tiles.CPU_SWEEP_ROWS", 1)
    hidden, weight, targets = problem(rows, 16, 700, dtype)
    g, h = normal(2, rows, seed=4).float()
    x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    swept = linear_token_loss(x, w, targets, token_loss=lambda f: f.logprobs * g + f.entropies * h)
    (0.5 * swept.loss).backward()
    two = results(linear_logprobs, hidden, weight, targets)
    rounding = 0.02 if dtype == torch.bfloat16 else 1e-5
    for mine, true in zip((x.grad, w.grad), two[2:], strict=True):
        assert (2 * mine.double() - true).abs().max() <= rounding * float(true.abs().max())


@DTYPES
@pytest.mark.usefixtures("back_end")
def test_given_logits_give_the_numbers_of_float64(dtype: torch.dtype) -> None:
    logits = (5 * normal(7, 2100, seed=1)).to(dtype)
    targets = torch.arange(7) * 300
    found, exact = row_logprobs(logits, targets, 0.9), row_logprobs(logits.double(), targets, 0.9)
    for mine, true in zip(found, exact, strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=1e-5, atol=1e-5)


@DTYPES
def test_a_row_has_the_same_bits_whatever_the_other_rows_and_the_threads(dtype: torch.dtype) -> None:
    compiled(dtype)
    hidden, weight, targets = problem(70, 34, 1300, dtype)
    whole = linear_logprobs(hidden, weight, targets)
    for rows in (slice(0, 1), slice(3, 50), slice(69, 70)):
        part = linear_logprobs(hidden[rows], weight, targets[rows])
        assert torch.equal(part.logprobs, whole.logprobs[rows])
        assert torch.equal(part.entropies, whole.entropies[rows])
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        other = results(linear_logprobs, hidden, weight, targets)
    finally:
        torch.set_num_threads(threads)
    one = results(linear_logprobs, hidden, weight, targets)
    assert all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))


def test_nan_states_give_nan_in_their_rows_alone() -> None:
    compiled(torch.bfloat16)
    hidden, weight, targets = problem(6, 8, 40, torch.bfloat16)
    hidden[2, 3] = float("nan")
    logprobs = linear_logprobs(hidden, weight, targets).logprobs
    assert torch.equal(logprobs.isnan(), torch.arange(6) == 2)


def test_without_a_compiler_one_line_is_logged_and_torch_does_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    cpu_build.library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert cpu_build.library() is None
            assert cpu_build.library() is None
    finally:
        cpu_build.library.cache_clear()
    (line,) = caplog.messages
    assert "no-such-compiler" in line
    assert "\n" not in line


def test_a_source_that_does_not_compile_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "wrong.cpp"
    source.write_text("int wrong = ;")
    monkeypatch.setattr(cpu_build, "SOURCE", source)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    cpu_build.library.cache_clear()
    try:
        assert cpu_build.library() is None
    finally:
        cpu_build.library.cache_clear()
    [warning] = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("no compiled head on this CPU, torch's operations take its place: ")
    assert list(tmp_path.rglob("*.so")) == []
