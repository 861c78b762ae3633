"""The maths is tested in tests/ops/test_importance.py; here, that each component does its own."""

import math

import pytest
import torch

from rlhf.algorithms.corrections import Level, Masked, Truncated

MASK = torch.tensor([[True, True, True], [True, True, False]])
OLD = torch.zeros(2, 3)
RATIOS = torch.tensor([[4.0, 0.5, 1.0], [0.25, 1.0, 77.0]])  # products 2 and 1/4
SAMPLER = -RATIOS.log()


@pytest.mark.parametrize(
    ("correction", "expected"),
    [
        (Truncated(cap=1.5), [[1.5, 0.5, 1.0], [0.25, 1.0, 0.0]]),
        (Truncated(cap=1.5, level=Level.sequence), [[1.5, 1.5, 1.5], [0.25, 0.25, 0.0]]),
        (Masked(low=0.4, high=3.0), [[0.0, 0.5, 1.0], [0.0, 1.0, 0.0]]),
        (Masked(low=0.4, high=3.0, level=Level.sequence), [[2.0, 2.0, 2.0], [0.0, 0.0, 0.0]]),
    ],
)
def test_each_mode_gives_the_literal_weights(correction, expected) -> None:
    torch.testing.assert_close(correction(OLD, SAMPLER, MASK), torch.tensor(expected))


def test_truncation_keeps_every_token_and_masking_what_it_weighs() -> None:
    assert torch.equal(Truncated(cap=1.5).kept(OLD, SAMPLER, MASK), MASK)
    kept = Masked(low=0.4, high=3.0).kept(OLD, SAMPLER, MASK)
    assert kept.tolist() == [[False, True, True], [False, True, False]]


@pytest.mark.parametrize("level", list(Level))
@pytest.mark.parametrize("correction", [Truncated, Masked])
def test_a_sampler_that_is_the_scorer_is_weighed_by_one(correction, level: Level) -> None:
    logprobs = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(correction(level=level)(logprobs, logprobs, MASK), MASK.float())


@pytest.mark.parametrize(
    ("component", "values", "message"),
    [
        (Truncated, {"cap": 0.9}, "Truncated.cap must be at least 1, got 0.9"),
        (Truncated, {"cap": math.nan}, "Truncated.cap must be at least 1, got nan"),
        (Masked, {"low": 0.0}, "Masked.low must be above 0 and at most 1, got 0.0"),
        (Masked, {"low": 1.1}, "Masked.low must be above 0 and at most 1, got 1.1"),
        (Masked, {"high": 0.9}, "Masked.high must be at least 1, got 0.9"),
    ],
)
def test_values_out_of_range_are_refused(component, values, message) -> None:
    with pytest.raises(ValueError, match=message):
        component(**values)


@pytest.mark.parametrize(
    ("component", "values"),
    [(Truncated, {"cap": 1.0}), (Masked, {"low": 1.0}), (Masked, {"high": 1.0})],
)
def test_a_bound_may_be_one(component, values: dict[str, float]) -> None:
    made = component(**values)
    assert {name: getattr(made, name) for name in values} == values
    assert torch.equal(made(OLD, OLD, MASK), MASK.float())
