"""The gate lets right results through and stops those of the known kinds of wrong kernel."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.accuracy import error, errors, fault, mean_error, tolerance
from benchmarks.head import tasks
from benchmarks.head.problem import HeadProblem, make_problem
from benchmarks.head.truth import Truth

Function = Callable[[HeadProblem, Tensor, Tensor], tuple[Tensor, Tensor]]


def naive(problem: HeadProblem, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return measured(problem, (hidden @ weight.t()).float())


def measured(problem: HeadProblem, logits: Tensor) -> tuple[Tensor, Tensor]:
    logprobs = logits.log_softmax(1)
    found = logprobs.gather(1, problem.targets.unsqueeze(1)).squeeze(1)
    return found, -(logprobs.exp() * logprobs).sum(1)


def entropy_without_gradient(problem: HeadProblem, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    logprobs, entropies = naive(problem, hidden, weight)
    return logprobs, entropies.detach() + 0.0 * entropies


def opposite_sign(problem: HeadProblem, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    logprobs, entropies = naive(problem, hidden, weight)
    return 2 * logprobs.detach() - logprobs, entropies


def phantom_columns(problem: HeadProblem, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Columns past the vocabulary count as logits of 0, where all real ones are far below."""
    logits = (hidden @ weight.t()).float() - 20.0
    return measured(problem, torch.nn.functional.pad(logits, (0, 5)))


def not_a_number(problem: HeadProblem, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    logprobs, entropies = naive(problem, hidden, weight)
    return torch.where(torch.arange(len(logprobs)) == 3, torch.nan, logprobs), entropies


def shifted_targets(problem: HeadProblem, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    logprobs, entropies = naive(problem, hidden, weight)
    return logprobs.roll(1), entropies


def judged(function: Function, dtype: torch.dtype) -> str | None:
    problem = make_problem((48, 16, 301), dtype)
    truth = Truth(problem)
    found = tasks.compared(tasks.backward(function, problem, entropy_gradient=True))
    right = truth.backward(entropy_gradient=True)
    return fault(errors(found, right), tolerance(dtype, truth.largest))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_naive_head_passes(dtype: torch.dtype) -> None:
    assert judged(naive, dtype) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "wrong", [entropy_without_gradient, opposite_sign, phantom_columns, not_a_number, shifted_targets]
)
def test_a_wrong_head_is_void(wrong: Function, dtype: torch.dtype) -> None:
    assert judged(wrong, dtype) is not None


def test_a_fault_names_the_output_and_both_sizes() -> None:
    assert fault({"hidden": 1e-6, "weight": 0.5}, 0.01) == "weight off by 0.5, allowed 0.01"


def test_an_error_of_a_logprob_is_in_nats_and_of_a_gradient_a_share_of_the_largest() -> None:
    found, truth = torch.tensor([-3.0, 1.5]), torch.tensor([-4.0, 2.0])
    assert error("logprobs", found, truth) == 1.0
    assert error("hidden", found, truth) == 0.25


def test_a_mean_error_is_the_root_of_the_mean_square_and_of_gradients_a_share_of_the_truths() -> None:
    found, truth = torch.tensor([-3.0, 2.0, 1.0, 5.0]), torch.tensor([-4.0, 2.0, 0.0, 4.0])
    assert mean_error("logprobs", found, truth) == pytest.approx(0.75**0.5)
    assert mean_error("weight", found, truth) == pytest.approx((3 / 36) ** 0.5)
    assert mean_error("weight", found * torch.nan, truth) == float("inf")


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_an_error_of_what_is_not_finite_is_infinite(wrong: float) -> None:
    assert error("logprobs", torch.tensor([-3.0, wrong]), torch.tensor([-4.0, 2.0])) == float("inf")
