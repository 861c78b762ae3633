import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from rlhf.kernels.row_logprobs import row_logprobs
from rlhf.ops.logprobs import logprobs_and_entropies

pytestmark = pytest.mark.usefixtures("small_tiles")


def case(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(3, 4, 29, generator=generator, dtype=torch.float64)
    return logits.to(dtype).requires_grad_(), torch.randint(29, (3, 4), generator=generator)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_the_definition(dtype: torch.dtype) -> None:
    logits, targets = case(dtype)
    before = logits.detach().clone()
    g, h = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = []
    for measure in (row_logprobs, logprobs_and_entropies):
        found = measure(logits, targets, 0.7)
        gradient = torch.autograd.grad((found.logprobs * g + found.entropies * h).sum(), logits)
        results.append((*found, *gradient))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)
    assert torch.equal(logits, before)


def test_finite_differences_agree() -> None:
    logits, targets = case()
    temperature = torch.linspace(0.5, 2.0, 12).reshape(3, 4)
    assert gradcheck(lambda z: tuple(row_logprobs(z, targets, temperature)), (logits,))


def test_shapes_and_targets_that_do_not_fit_are_refused() -> None:
    logits, targets = case()
    with pytest.raises(ValueError, match=r"of shape \(4,\), expected torch.int64 of \(3, 4\)"):
        row_logprobs(logits, targets[0])
    with pytest.raises(ValueError, match="targets run from 29 to 29"):
        row_logprobs(logits, torch.full_like(targets, 29))
