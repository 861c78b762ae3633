"""Products of few rows: the sums of float64, and a row's own numbers in every company."""

import pytest
import torch

from rlhf.kernels.cpu_step import FEW, few_rows, has_few_rows, has_step

pytestmark = pytest.mark.skipif(not has_step(), reason="no C++ compiler")
SHAPES = [(1, 1), (5, 7), (6, 16), (12, 33), (49, 64), (131, 96)]
"""Outputs and inputs; whole tiles, parts of one, and several blocks."""


def given(rows: int, outputs: int, inputs: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    shapes = ((rows, inputs), (outputs, inputs), (outputs,))
    states, weight, bias = (torch.randn(*shape, generator=generator) for shape in shapes)
    return states, weight, bias


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 16, 21, 40])
def test_a_product_is_that_of_float64(rows: int, outputs: int, inputs: int) -> None:
    states, weight, bias = given(rows, outputs, inputs)
    expected = states.double() @ weight.double().t() + bias.double()
    torch.testing.assert_close(few_rows(states, weight, bias).double(), expected, rtol=1e-5, atol=1e-5)
    without = few_rows(states, weight, None).double()
    torch.testing.assert_close(without, expected - bias.double(), rtol=1e-5, atol=1e-5)


def test_weights_and_states_may_have_any_layout() -> None:
    states, weight, _ = given(9, 12, 10)
    expected = few_rows(states, weight, None)
    for other in (weight.t().contiguous().t(), torch.cat([weight, weight], 1)[:, :10]):
        assert torch.equal(few_rows(states, other, None), expected)
    for other in (states.t().contiguous().t(), torch.cat([states, states], 1)[:, :10]):
        assert torch.equal(few_rows(other, weight, None), expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_rows_numbers_are_its_own(threads: int) -> None:
    states, weight, bias = given(37, 50, 48)
    torch.set_num_threads(threads)
    try:
        together = few_rows(states, weight, bias)
    finally:
        torch.set_num_threads(1)
    for rows in (slice(0, 1), slice(3, 12), slice(20, 37)):
        assert torch.equal(few_rows(states[rows], weight, bias), together[rows])


def test_it_is_for_few_rows_in_float32_alone() -> None:
    states, weight, _ = given(3, 4, 5)
    assert has_few_rows(states, weight)
    assert not has_few_rows(states.double(), weight.double())
    assert not has_few_rows(states.bfloat16(), weight.bfloat16())
    assert not has_few_rows(states.expand(FEW, 3, 5), weight)
