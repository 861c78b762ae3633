"""What the head says that it holds is what its compiled kernels are seen to hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.kernels.cpu_products import multiplies
from rlhf.kernels.footprint import HeadSizes
from rlhf.kernels.linear_logprobs import linear_logprobs
from rlhf.kernels.linear_token_loss import linear_token_loss
from rlhf.planning.held import Held

SHAPES = [(300, 20_000, 64), (5000, 3001, 96), (40, 2000, 256)]  # tokens, vocabulary, width


def head(rows: int, columns: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(columns, width, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, columns, (rows,), generator=generator)


def peak(run: Callable[[], Any]) -> int:
    with Held() as held:
        run()
    return held.peak


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    if not multiplies(request.param == torch.bfloat16):
        pytest.skip("no compiler, or a CPU without the products")
    return request.param


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_backward_of_two_passes(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    hidden, weight, targets = head(*shape, dtype)
    rows, columns, width = shape
    sizes = HeadSizes(rows=rows, columns=columns, width=width, dtype=dtype)
    logprobs = linear_logprobs(hidden, weight, targets).logprobs.sum()
    held = peak(logprobs.backward)
    gradients = weight.nbytes + 4 * rows * width
    numbers = 16 * rows * 4  # of each row, and factors of one narrow tile that are widened
    assert held - gradients == pytest.approx(sizes.differentiating(), rel=0.05, abs=numbers + hidden.nbytes)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_one_sweep(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    hidden, weight, targets = head(*shape, dtype)
    rows, columns, width = shape
    sizes = HeadSizes(rows=rows, columns=columns, width=width, dtype=dtype)
    held = peak(lambda: linear_token_loss(hidden, weight, targets, token_loss=lambda found: -found.logprobs))
    gradients = columns * width * sizes.swept_weight.itemsize + 4 * rows * width
    assert held - gradients == pytest.approx(sizes.sweeping(), rel=0.08, abs=24 * rows * 4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_without_a_gradient(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    hidden, weight, targets = head(*shape, dtype)
    rows, columns, width = shape
    sizes = HeadSizes(rows=rows, columns=columns, width=width, dtype=dtype)
    with torch.no_grad():
        held = peak(lambda: linear_logprobs(hidden, weight, targets))
    assert held == pytest.approx(sizes.measuring(), rel=0.05, abs=24 * rows * 4)


def test_a_gpu_holds_a_chunk_of_all_logits() -> None:
    """2²⁸ logits at a time, by hand: 16,384 rows of 151,936 in bfloat16.

    ⌊2²⁸/151936⌋ = 1766 rows, so ⌈16384/1766⌉ = 10 chunks of up to 1639; each holds float32 logits, their
    bfloat16 gradients, and 4096 float32 numbers of d hidden a row. dW is a float32 sum.
    """
    sizes = HeadSizes(rows=16_384, columns=151_936, width=4096, dtype=torch.bfloat16, on_gpu=True)
    assert sizes.sweep_rows == 1639
    assert sizes.sweeping() == 1639 * (151_936 * 6 + 4096 * 4)
    assert sizes.swept_weight == torch.float32
