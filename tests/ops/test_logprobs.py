import math

import pytest
import torch
from torch.autograd import gradcheck

from rlhf.ops.logprobs import (
    entropy,
    exact_kl,
    logprobs_and_entropies,
    token_logprobs,
    vocabulary_logprobs,
)

LOG_125 = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).log()  # probabilities 1/8, 2/8, 5/8


def random_logits(*shape: int, size: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return ((torch.rand(*shape, generator=generator) * 2 - 1) * size).to(dtype)


def by_definition(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    z = logits.double() / temperature
    return z - (z - z.amax(-1, keepdim=True)).exp().sum(-1, keepdim=True).log() - z.amax(-1, keepdim=True)


def test_probabilities_are_the_logits_exponentials_over_their_sum() -> None:
    logprobs = token_logprobs(LOG_125.expand(3, 3), torch.tensor([0, 1, 2]))
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.125, 0.25, 0.625], dtype=torch.float64))


def test_temperature_one_half_squares_the_odds() -> None:
    logprobs = token_logprobs(LOG_125, torch.tensor(2), temperature=0.5)  # 25 / (1 + 4 + 25)
    torch.testing.assert_close(logprobs.exp(), torch.tensor(25 / 30, dtype=torch.float64))


@pytest.mark.parametrize("size", [0.1, 4.0, 80.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_error_against_float64_on_the_same_logits_is_below_1e_5(
    size: float, dtype: torch.dtype, temperature: float
) -> None:
    logits = random_logits(64, 507, size=size, dtype=dtype)
    targets = torch.arange(64) * 7
    expected = by_definition(logits, temperature).gather(1, targets[:, None]).squeeze(1)
    error = (token_logprobs(logits, targets, temperature).double() - expected).abs()
    # float32 cannot hold a log-prob of -200 to 1e-5: there, four roundings of half an ulp each
    assert (error <= (2 * torch.finfo(torch.float32).eps * expected.abs()).clamp(min=1e-5)).all()


@pytest.mark.parametrize("size", [3.9, 31.0])
def test_rounding_the_logits_costs_at_most_one_of_their_ulps(size: float) -> None:
    exact = random_logits(64, 507, size=size).double()
    targets = torch.arange(64)
    expected = by_definition(exact).gather(1, targets[:, None]).squeeze(1)
    ulp = 2.0 ** (math.floor(math.log2(exact.abs().max())) - 7)
    error = (token_logprobs(exact.to(torch.bfloat16), targets).double() - expected).abs().max()
    assert error <= ulp


@pytest.mark.parametrize("shift", [-300.0, 0.0, 300.0])
def test_probabilities_sum_to_one_wherever_the_logits_lie(shift: float) -> None:
    total = vocabulary_logprobs(random_logits(32, 1001, size=20.0) + shift).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones(32), rtol=0, atol=1e-6)


def test_all_negative_logits_give_the_same_as_shifted_ones() -> None:
    logits = random_logits(4, 33, size=9.0).double() - 70.0
    torch.testing.assert_close(entropy(logits), entropy(logits + 70.0))


def test_near_certain_tokens_keep_their_digits() -> None:
    logits = torch.zeros(1, 1001)
    logits[0, 3] = 16.0
    expected = -math.log1p(1000 * math.exp(-16.0))  # -1.1e-4
    torch.testing.assert_close(
        token_logprobs(logits, torch.tensor([3])), torch.tensor([expected]), rtol=0, atol=1e-6
    )


def test_logprobs_are_never_positive() -> None:
    logits = random_logits(512, 3, size=80.0)
    assert (vocabulary_logprobs(logits) <= 0).all()
    assert (entropy(logits) >= 0).all()


def test_entropy_of_a_uniform_distribution_is_log_v() -> None:
    torch.testing.assert_close(entropy(torch.full((2, 7), -5.0)), torch.full((2,), math.log(7)))


def test_entropy_of_one_two_five_eighths() -> None:
    expected = -(0.125 * math.log(0.125) + 0.25 * math.log(0.25) + 0.625 * math.log(0.625))
    torch.testing.assert_close(entropy(LOG_125), torch.tensor(expected, dtype=torch.float64))


def test_entropy_takes_the_temperature() -> None:
    p = torch.tensor([1.0, 4.0, 25.0], dtype=torch.float64) / 30
    torch.testing.assert_close(entropy(LOG_125, 0.5), -(p * p.log()).sum())


def test_both_numbers_from_one_softmax_equal_each_alone() -> None:
    logits, targets = random_logits(5, 4, 33, size=5.0), torch.arange(20).reshape(5, 4)
    both = logprobs_and_entropies(logits, targets, 0.7)
    assert torch.equal(both.logprobs, token_logprobs(logits, targets, 0.7))
    assert torch.equal(both.entropies, entropy(logits, 0.7))


def test_exact_kl_of_two_coins() -> None:
    p, q = torch.tensor([0.25, 0.75]).double(), torch.tensor([0.5, 0.5]).double()
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    torch.testing.assert_close(exact_kl(p.log(), q.log()), torch.tensor(expected, dtype=torch.float64))


def test_exact_kl_is_the_mean_of_the_log_ratio_under_p_at_the_temperature() -> None:
    p, q = random_logits(2, 9, 33, size=3.0).double()
    log_p, log_q = by_definition(p, 0.6), by_definition(q, 0.6)
    torch.testing.assert_close(exact_kl(p, q, 0.6), (log_p.exp() * (log_p - log_q)).sum(-1))


def test_exact_kl_of_equal_distributions_is_exactly_zero() -> None:
    logits = random_logits(9, 33, size=30.0)
    assert torch.equal(exact_kl(logits, logits.clone()), torch.zeros(9))


def test_gradients_are_those_of_finite_differences() -> None:
    logits = random_logits(3, 5, size=2.0).double().requires_grad_()
    targets = torch.tensor([0, 4, 2])
    assert gradcheck(lambda z: token_logprobs(z, targets, 0.7), logits)
    assert gradcheck(lambda z: entropy(z, 0.7), logits)
    other = logits.detach().flip(0)
    assert gradcheck(lambda z: exact_kl(z, other, 0.7), logits)


def test_float64_stays_and_half_precision_becomes_float32() -> None:
    assert token_logprobs(LOG_125, torch.tensor(0)).dtype == torch.float64
    assert token_logprobs(LOG_125.to(torch.bfloat16), torch.tensor(0)).dtype == torch.float32


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        token_logprobs(LOG_125, torch.tensor(0), temperature)


def test_vocabularies_of_different_size_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        exact_kl(torch.zeros(2, 3), torch.zeros(2, 4))


def test_temperature_two_takes_the_root_of_the_odds() -> None:
    roots = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).sqrt()
    torch.testing.assert_close(vocabulary_logprobs(LOG_125, 2.0).exp(), roots / roots.sum())


def test_every_temperature_is_one_unless_said() -> None:
    p, target = torch.tensor([0.125, 0.25, 0.625], dtype=torch.float64), torch.tensor(2)
    both = logprobs_and_entropies(LOG_125, target)
    for found in (vocabulary_logprobs(LOG_125)[2], token_logprobs(LOG_125, target), both.logprobs):
        torch.testing.assert_close(found, p[2].log())
    for found in (entropy(LOG_125), both.entropies):
        torch.testing.assert_close(found, -(p * p.log()).sum())
    uniform = torch.full((3,), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(exact_kl(LOG_125, uniform.log()), (p * (3 * p).log()).sum())


def test_gradients_of_whole_distributions_are_those_of_finite_differences() -> None:
    logits = random_logits(3, 5, size=2.0).double().requires_grad_()
    targets = torch.tensor([0, 4, 2])
    assert gradcheck(lambda z: vocabulary_logprobs(z, 0.7), logits)
    assert gradcheck(lambda z: tuple(logprobs_and_entropies(z, targets, 0.7)), logits)
    fixed = logits.detach().flip(0)
    assert gradcheck(lambda z: exact_kl(fixed, z, 0.7), logits)  # by the second argument
