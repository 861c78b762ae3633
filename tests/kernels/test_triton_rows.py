"""Triton's row kernels without a GPU: their values under the interpreter, and what they take of an H100."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlhf.kernels.linear_logprobs import linear_logprobs
from rlhf.kernels.linear_token_loss import linear_token_loss
from rlhf.ops.logprobs import logprobs_and_entropies

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def output_of(script: Path) -> str:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_triton
def test_values_under_the_interpreter_are_those_of_float64() -> None:
    errors = json.loads(output_of(Path(__file__).with_name("interpreted_rows.py")))
    assert len(errors) == 24
    for case, found in errors.items():
        # float32 rounds products of 80 by 4e-6, log-probs of 200 by 8e-6
        assert max(found) < 3e-5, (case, found)


@needs_triton
@pytest.mark.slow
def test_every_kernel_compiles_for_an_h100_without_spills() -> None:
    lines = output_of(ROOT / "benchmarks/kernels/compile_check.py").splitlines()
    assert len(lines) == 48


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [1000, 70_001, 151_936])
def test_values_and_gradients_on_a_gpu_are_those_of_float64(dtype: torch.dtype, vocabulary: int) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = ((300, 257), (vocabulary, 257))
    hidden, weight = (torch.randn(s, generator=generator, device="cuda").to(dtype) / 4 for s in shapes)
    targets = torch.randint(vocabulary, (301,), generator=generator, device="cuda")[1:]
    g, h = torch.randn(2, 300, generator=generator, device="cuda")
    results = []
    for kind in (dtype, torch.float64):
        x, w = (t.to(kind).requires_grad_() for t in (hidden, weight))
        if kind == dtype:
            found = linear_logprobs(x, w, targets, 0.7, softcap=30.0)
        else:
            found = logprobs_and_entropies(30.0 * torch.tanh(x @ w.t() / 30.0), targets, 0.7)
        loss = (found.logprobs * g + found.entropies * h).sum()
        results.append((*found, *torch.autograd.grad(loss, (x, w))))
    for ours, exact in zip(*results, strict=True):
        # TF32 and bfloat16 operands; the results of bfloat16 are rounded once
        torch.testing.assert_close(
            ours.double(), exact.double(), rtol=2e-2, atol=2e-3 * float(exact.abs().max())
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_one_sweep_on_a_gpu_gives_the_numbers_of_two_passes() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    hidden, weight = (
        torch.randn(s, generator=generator, device="cuda").bfloat16().requires_grad_() / 8
        for s in ((5000, 256), (100_003, 256))
    )
    targets = torch.randint(len(weight), (5000,), generator=generator, device="cuda")
    weights = torch.rand(5000, generator=generator, device="cuda")
    swept = linear_token_loss(hidden, weight, targets, token_loss=lambda found: -weights * found.logprobs)
    separate = -(weights * linear_logprobs(hidden, weight, targets).logprobs).sum()
    torch.testing.assert_close(swept.loss, separate, rtol=1e-4, atol=0.0)
    pairs = zip(*(torch.autograd.grad(x, (hidden, weight)) for x in (swept.loss, separate)), strict=True)
    for ours, expected in pairs:
        torch.testing.assert_close(ours, expected, rtol=2e-2, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_more_logits_than_a_32_bit_offset_reaches() -> None:
    from rlhf.kernels.row_logprobs import row_logprobs

    logits = torch.zeros(70_000, 32_000, dtype=torch.bfloat16, device="cuda")
    logits[-1, -1] = 10.0
    targets = torch.full((70_000,), 31_999, device="cuda")
    found = row_logprobs(logits, targets)
    expected = logprobs_and_entropies(logits[-1:].double(), targets[-1:])
    torch.testing.assert_close(found.logprobs[-1:].double(), expected.logprobs, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_forward_never_makes_the_host_wait() -> None:
    hidden, weight = torch.randn(64, 128, device="cuda"), torch.randn(1000, 128, device="cuda")
    targets = torch.zeros(64, dtype=torch.int64, device="cuda")
    linear_logprobs(hidden, weight, targets)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        linear_logprobs(hidden, weight, targets)
    finally:
        torch.cuda.set_sync_debug_mode("default")
