"""E11: responses of the production sampler on the testbed, against the exact distribution of their best.

Every one of the 341 responses has its probability, so that score and KL of the best of n are known.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlhf.ops.best_of_n import (
    best_of_n_curve,
    best_of_n_kl,
    best_of_n_kl_bound,
    best_of_n_pmf,
    best_rows,
)
from rlhf.rollout.decoding import Sampling
from rlhf.rollout.sampler import Sampler
from tests.testbed import table
from tests.testbed.tree import Testbed

GROUPS, N = 2000, 16


def drawn(bed: Testbed, logits: Tensor, rows: int, seed: int) -> Tensor:
    """(rows,) number of each response that the production sampler draws from the table ``logits``."""
    sampler = Sampler(decoding=Sampling(max_new_tokens=bed.T), end_ids=[bed.EOS], pad_id=bed.PAD)
    prompts = table.prompts(1).rows.batch(torch.zeros(rows, dtype=torch.int64))
    noise = torch.rand(rows, bed.T, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return bed.index_of(sampler.sample(table.policy(bed, logits), prompts, noise).responses)


@pytest.fixture(scope="module")
def samples(testbed: Testbed) -> Tensor:
    """(GROUPS, N) numbers of responses."""
    return drawn(testbed, testbed.ref_logits, GROUPS * N, 0).reshape(GROUPS, N)


def best(bed: Testbed, samples: Tensor) -> Tensor:
    """(groups,) the response that the product keeps of each group."""
    return samples.flatten()[best_rows(bed.r[samples].flatten(), samples.shape[1])]


def within(found: Tensor, expected: float) -> bool:
    """The mean of ``found`` is four of its standard errors from ``expected`` at most."""
    error = found.std() / len(found) ** 0.5
    return bool((found.mean() - expected).abs() < 4 * error)


def chance(outcomes: Tensor, probabilities: Tensor) -> float:
    """Of a χ² as large as this; outcomes that are too rare for it count as one."""
    found = torch.bincount(outcomes, minlength=len(probabilities)).double()
    expected = probabilities * len(outcomes)
    rare = expected < 5
    found, expected = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (found, expected))
    statistic = ((found - expected).square() / expected).sum()
    assert len(found) > 4
    return float(torch.special.gammaincc(torch.tensor((len(found) - 1) / 2.0), statistic.float() / 2))


@pytest.mark.parametrize("n", [2, 4, 16])
def test_the_best_of_sampled_responses_have_their_exact_score_and_kl(
    testbed: Testbed, samples: Tensor, n: int
) -> None:
    p = testbed.log_ref.exp()
    q, kl = best_of_n_pmf(testbed.r, p, n), best_of_n_kl(testbed.r, p, n)
    kept = best(testbed, samples[:, :n])
    assert chance(kept, q) > 1e-3
    assert within(testbed.r[kept], float(q @ testbed.r))
    assert within((q / p).log()[kept], kl)
    assert 0.7 * best_of_n_kl_bound(n) < kl < best_of_n_kl_bound(n)


def test_one_more_or_one_less_would_be_noticed(testbed: Testbed, samples: Tensor) -> None:
    kept = best(testbed, samples[:, :4])
    for n in (3, 5):
        assert chance(kept, best_of_n_pmf(testbed.r, testbed.log_ref.exp(), n)) < 1e-6


def test_one_set_of_samples_gives_the_best_of_every_n(testbed: Testbed, samples: Tensor) -> None:
    means, errors = best_of_n_curve(testbed.r[samples])
    p = testbed.log_ref.exp()
    exact = torch.stack([best_of_n_pmf(testbed.r, p, n) @ testbed.r for n in range(1, N + 1)])
    assert ((means - exact).abs() < 4 * errors).all()
    assert errors[3] < 0.6 * testbed.r[best(testbed, samples[:, :4])].std() / GROUPS**0.5  # less noise


def conditional(bed: Testbed, joint: Tensor) -> Tensor:
    """(85, 5) the table of logits whose responses have the probabilities ``joint`` (341,)."""
    through = torch.zeros(85, 5, dtype=torch.float64)
    places = (bed.states[bed.mask], bed.responses[bed.mask])
    through.index_put_(places, joint[:, None].expand(-1, bed.T)[bed.mask], accumulate=True)
    return through.log()


def test_two_rounds_of_the_best_of_two_are_the_best_of_four(testbed: Testbed) -> None:
    """D55: the second round samples from a policy that is the best of two exactly."""
    p = testbed.log_ref.exp()
    first = best_of_n_pmf(testbed.r, p, 2)
    logits = conditional(testbed, first)
    torch.testing.assert_close(testbed.log_joint(logits), first.log())
    kept = best(testbed, drawn(testbed, logits, 8000, 1).reshape(4000, 2))
    four = best_of_n_pmf(testbed.r, p, 4)
    assert chance(kept, four) > 1e-3
    assert within(testbed.r[kept], float(four @ testbed.r))
    assert chance(kept, best_of_n_pmf(testbed.r, p, 3)) < 1e-6
