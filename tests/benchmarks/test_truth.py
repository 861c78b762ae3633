"""The float64 truth against autograd on all logits."""

import pytest
import torch

from benchmarks.head.problem import HeadProblem, make_problem, sampled
from benchmarks.head.tasks import surrogate
from benchmarks.head.truth import Truth


def dense(
    problem: HeadProblem, hidden: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    z = hidden @ weight.t()
    if problem.softcap is not None:
        z = problem.softcap * torch.tanh(z / problem.softcap)
    logprobs = (z / problem.temperature).log_softmax(1)
    found = logprobs.gather(1, problem.targets.unsqueeze(1)).squeeze(1)
    return found, -(logprobs.exp() * logprobs).sum(1)


@pytest.fixture
def problem() -> HeadProblem:
    made = make_problem((300, 5, 307), torch.float32)  # more than are sampled of each
    made.temperature, made.softcap = 0.7, 3.0
    made.mask[::3] = False
    return made


def test_it_is_what_autograd_says_of_the_whole_logits(problem: HeadProblem) -> None:
    hidden = problem.hidden.double().requires_grad_()
    weight = problem.weight.double().requires_grad_()
    logprobs, entropies = (torch.where(problem.mask, part, 0.0) for part in dense(problem, hidden, weight))
    total = (problem.upstream * logprobs).sum() + (problem.upstream_entropy * entropies).sum()
    d_hidden, d_weight = torch.autograd.grad(total, [hidden, weight])
    found = Truth(problem).backward(entropy_gradient=True)
    torch.testing.assert_close(found["logprobs"], logprobs)
    torch.testing.assert_close(found["entropies"], entropies)
    torch.testing.assert_close(found["hidden"], d_hidden[sampled(300)])
    torch.testing.assert_close(found["weight"], d_weight[sampled(307)])


def test_the_loss_is_what_autograd_says(problem: HeadProblem) -> None:
    problem.mask[:] = True
    hidden = problem.hidden.double().requires_grad_()
    weight = problem.weight.double().requires_grad_()
    value = surrogate(problem, dense(problem, hidden, weight)[0]).sum()
    d_hidden, d_weight = torch.autograd.grad(value, [hidden, weight])
    found = Truth(problem).loss()
    torch.testing.assert_close(found["loss"], value.reshape(1))
    torch.testing.assert_close(found["hidden"], d_hidden[sampled(300)])
    torch.testing.assert_close(found["weight"], d_weight[sampled(307)])


def test_the_first_and_the_last_row_are_always_sampled() -> None:
    for count in (1, 7, 256, 257, 151_936):
        rows = sampled(count)
        assert (rows[0], rows[-1]) == (0, count - 1)
        assert len(rows.unique()) == min(count, 256)


def test_a_problem_has_the_entropy_asked_for() -> None:
    problem = make_problem((64, 32, 503), torch.float32, entropy=1.5)
    _, entropies = dense(problem, problem.hidden, problem.weight)
    assert abs(float(entropies.mean()) - 1.5) < 1e-3
