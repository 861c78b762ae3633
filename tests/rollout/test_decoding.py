import math

import pytest
import torch

from rlhf.rollout.decoding import Greedy, Sampling

PROBABILITIES = torch.tensor([0.1, 0.0, 0.6, 0.3], dtype=torch.float64)
LOGITS = PROBABILITIES.clamp(min=1e-300).log().clamp(min=-600).float()


@pytest.mark.parametrize(
    ("level", "token"), [(0.0, 0), (0.0999, 0), (0.1001, 2), (0.6999, 2), (0.7001, 3), (1 - 2**-53, 3)]
)
def test_a_token_owns_the_interval_of_its_probability(level: float, token: int) -> None:
    tokens, logprobs, _ = Sampling().draw(LOGITS[None], torch.tensor([level], dtype=torch.float64))
    assert tokens.tolist() == [token]
    torch.testing.assert_close(logprobs, PROBABILITIES[[token]].log().float())


def test_an_impossible_first_token_is_not_drawn_even_at_zero() -> None:
    z = torch.tensor([[-2000.0, 0.0, 1.0]])  # exp underflows: probability 0
    assert Sampling().draw(z, torch.zeros(1, dtype=torch.float64))[0].tolist() == [1]


def test_the_largest_noise_draws_the_last_token_whatever_the_total_rounds_to() -> None:
    z = torch.randn(5_000, 7, generator=torch.Generator().manual_seed(0))
    tokens, *_ = Sampling().draw(z, torch.full((5_000,), 1 - 2**-53, dtype=torch.float64))
    assert (tokens == 6).all()


def test_a_grid_of_noise_gives_every_token_its_share_at_the_temperature() -> None:
    """Inverting the distribution on n equal steps is exact to one step a token."""
    n = 10_000
    z = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0])
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    tokens, *_ = Sampling(temperature=0.6).draw(z.expand(n, 5), grid)
    share = torch.bincount(tokens, minlength=5) / n
    torch.testing.assert_close(share, (z / 0.6).softmax(0), rtol=0, atol=1 / n)


def test_frequencies_pass_a_chi_square_test() -> None:
    """Numerics D13: 1e5 draws from five tokens."""
    n, temperature = 100_000, 0.7
    z = torch.tensor([0.3, -1.0, 1.2, 0.0, -3.0])
    noise = torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens, *_ = Sampling(temperature=temperature).draw(z.expand(n, 5), noise)
    expected = n * (z.double() / temperature).softmax(0)
    statistic = ((torch.bincount(tokens, minlength=5) - expected) ** 2 / expected).sum()
    assert statistic < 13.277  # the 0.99 quantile of χ² with four degrees of freedom


def test_logprobs_are_of_the_distribution_sampled_from() -> None:
    z = torch.tensor([[0.3, -1.0, 1.2]])
    tokens, logprobs, _ = Sampling(temperature=0.5).draw(z, torch.tensor([0.5], dtype=torch.float64))
    assert tokens.tolist() == [2]
    weights = [math.exp(v / 0.5) for v in (0.3, -1.0, 1.2)]
    torch.testing.assert_close(logprobs, torch.tensor([math.log(weights[2] / sum(weights))]))


def test_greedy_takes_the_first_of_the_largest() -> None:
    tokens, logprobs, _ = Greedy().draw(torch.tensor([[1.0, 5.0, 5.0], [0.0, -1.0, -2.0]]), torch.zeros(2))
    assert tokens.tolist() == [1, 0]
    assert logprobs.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("temperature", [0.0, -0.5, float("nan"), float("inf")])
def test_sampling_refuses_a_temperature_that_is_not_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"Sampling\.temperature must be positive"):
        Sampling(temperature=temperature)


@pytest.mark.parametrize("kind", [Sampling, Greedy])
def test_a_response_needs_room_for_a_token(kind: type) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__}\.max_new_tokens must be at least 1, got 0"):
        kind(max_new_tokens=0)
