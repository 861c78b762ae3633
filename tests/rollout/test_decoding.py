import math
from typing import Any

import pytest
import torch

from rlhf.rollout.decoding import Greedy, Sampling, Truncated

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


def kept(probabilities: list[float], top_k: int | None, top_p: float, min_p: float) -> dict[int, float]:
    """By the words of the definition: what is left of a distribution without equal parts, summing to 1."""
    order = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])[:top_k]
    mass, total, nucleus = 0.0, sum(probabilities[token] for token in order), []
    for token in order:
        nucleus.append(token)
        mass += probabilities[token] / total
        if mass >= top_p:
            break
    likely = [token for token in nucleus if probabilities[token] >= min_p * max(probabilities)]
    total = sum(probabilities[token] for token in likely)
    return {token: probabilities[token] / total for token in likely}


OPTIONS = [
    {},
    {"top_k": 1},
    {"top_k": 3},
    {"top_k": 9},
    {"top_p": 0.6},
    {"top_p": 0.95},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"top_k": 4, "top_p": 0.8},
    {"top_p": 0.97, "min_p": 0.1},
    {"top_k": 4, "top_p": 0.9, "min_p": 0.05},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.5])
def test_a_grid_of_noise_gives_the_truncated_distribution(
    options: dict[str, Any], temperature: float
) -> None:
    n, z = 5_000, torch.tensor([0.3, -1.0, 1.2, 0.0, -3.0, 0.9])
    law = kept(
        (z.double() / temperature).softmax(0).tolist(),
        **{"top_k": None, "top_p": 1.0, "min_p": 0.0} | options,
    )
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    found = Truncated(temperature=temperature, **options).draw(z.expand(n, 6), grid)
    exact = torch.tensor([law.get(token, 0.0) for token in range(6)])
    torch.testing.assert_close(torch.bincount(found.tokens, minlength=6) / n, exact, rtol=0, atol=1 / n)
    torch.testing.assert_close(found.logprobs, exact.log()[found.tokens], rtol=0, atol=1e-6)
    entropy = -sum(p * math.log(p) for p in law.values())
    torch.testing.assert_close(found.entropies, torch.full((n,), entropy), rtol=0, atol=1e-6)


def test_equal_logits_stay_or_go_together() -> None:
    z = torch.tensor([[2.0, 1.0, 1.0, 0.0]])
    assert Truncated(top_k=2).floors(z).tolist() == [1.0]
    assert Truncated(top_p=0.6).floors(z).tolist() == [1.0]  # the first has 0.53
    assert Truncated(top_p=0.5).floors(z).tolist() == [2.0]


def test_top_p_counts_what_top_k_left() -> None:
    """0.5, 0.3, 0.2: two of them hold 0.8, of which the first alone is 0.625."""
    z = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert int((z >= Truncated(top_p=0.6).floors(z)[:, None]).sum()) == 2
    assert int((z >= Truncated(top_p=0.6, top_k=2).floors(z)[:, None]).sum()) == 1


def test_a_logit_that_is_no_number_is_not_cut_away() -> None:
    z = torch.tensor([[0.0, torch.nan, 1.0]])
    for options in ({"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.5}):
        assert Truncated(**options).draw(z, torch.tensor([0.5], dtype=torch.float64)).logprobs.isnan().all()


@pytest.mark.parametrize(
    ("field", "value"),
    [("top_k", 0), ("top_p", 0.0), ("top_p", 1.1), ("min_p", -0.1), ("min_p", 1.1), ("temperature", 0.0)],
)
def test_truncation_refuses_what_cuts_everything_or_nothing(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"Truncated\.{field} must .*, got {value}"):
        Truncated(**{field: value})
