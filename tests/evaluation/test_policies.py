import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.evaluation.policies import Response, best_of, distinct, summarise, summarise_best


def response(**changes: Any) -> Response:
    fields: dict[str, Any] = {
        "prompt": "the",
        "text": "a b a",
        "score": 1.0,
        "judge": 0.5,
        "kl": 0.1,
        "exact_kl": 0.2,
        "ref_logprob": -3.0,
        "tokens": 3,
        "ended": True,
    }
    return Response(**(fields | changes))


def test_a_summary_by_hand() -> None:
    rows = [
        response(text="a b a b", score=1.0, judge=0.0, kl=2.0, exact_kl=1.0, ref_logprob=-3.0, tokens=1),
        response(text="c a b", score=2.0, judge=1.0, kl=4.0, exact_kl=2.0, ref_logprob=-5.0, tokens=5),
        response(
            text="d", score=6.0, judge=0.5, kl=0.0, exact_kl=6.0, ref_logprob=-2.0, tokens=4, ended=False
        ),
    ]
    one = summarise("PPO", rows)
    assert (one.policy, one.responses) == ("PPO", 3)
    assert one.score == pytest.approx(3.0)
    assert one.score_std == pytest.approx(math.sqrt(7))  # (4 + 1 + 9) / 2
    assert one.score_error == pytest.approx(math.sqrt(7 / 3))
    assert one.kl == pytest.approx(2.0)
    assert one.kl_error == pytest.approx(2 / math.sqrt(3))
    assert one.kl_exact == pytest.approx(3.0)
    assert one.judge == pytest.approx(0.5)
    assert one.judge_error == pytest.approx(0.5 / math.sqrt(3))
    assert one.distinct_2 == pytest.approx(3 / 5)  # ab ba ab, ca ab: three different of five
    assert one.length == pytest.approx(10 / 3)
    assert one.ended == pytest.approx(2 / 3)
    assert one.perplexity == pytest.approx(math.exp(10 / 10))  # of all tokens, not the mean over responses


def test_a_single_response_has_no_standard_error() -> None:
    with pytest.raises(ValueError, match="PPO: at least 2 responses are needed for a standard error, got 1"):
        summarise("PPO", [response()])


def test_without_a_judge_nothing_is_judged() -> None:
    one = summarise("PPO", [response(judge=None), response(judge=None)])
    assert (one.judge, one.judge_error) == (None, None)


def test_the_best_of_n_report_the_bound_of_their_kl() -> None:
    one = summarise_best("best of 4", [response(kl=9.0), response(kl=8.0)], 4)
    assert one.kl == pytest.approx(math.log(4) - 3 / 4)
    assert (one.kl_error, one.kl_exact) == (None, None)
    assert one.score == 1.0


def test_best_of_takes_the_first_of_the_highest() -> None:
    scores = [1.0, 3.0, 3.0, -1.0, -1.0, -2.0]
    rows = [response(score=score, text=str(number)) for number, score in enumerate(scores)]
    assert [row.text for row in best_of(rows, 3)] == ["1", "3"]
    assert best_of(rows, 1) == rows


def chi_square(counts: Tensor, expected: Tensor) -> tuple[float, int]:
    """Pearson's statistic and its degrees of freedom, outcomes that are too rare for it in one bin."""
    rare = expected < 5
    if rare.any():
        counts, expected = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (counts, expected))
    return ((counts - expected).square() / expected).sum().item(), len(expected) - 1


def test_the_best_of_samples_have_their_exact_distribution() -> None:
    """E11: of twenty responses with pᵢ = i/210, ordered by score, the best of 4 is i with Fᵢ⁴ − Fᵢ₋₁⁴."""
    p, n, groups = torch.arange(1, 21).double() / 210, 4, 4000
    drawn = torch.multinomial(p, n * groups, replacement=True, generator=torch.Generator().manual_seed(0))
    known = [response(score=float(i)) for i in range(20)]
    best = torch.tensor([one.score for one in best_of([known[i] for i in drawn.tolist()], n)]).long()
    counts, above = torch.bincount(best, minlength=20).double(), p.cumsum(0)
    statistic, freedom = chi_square(counts, groups * (above**n - (above - p) ** n))
    assert freedom == 11  # the nine lowest are in one bin
    assert 1.834 < statistic < 31.264  # quantiles 0.001 and 0.999
    assert chi_square(counts, groups * p)[0] > 1000


@pytest.mark.parametrize(("n", "expected"), [(4, 0.65103), (64, 1.48231)])
def test_the_best_by_a_noisy_proxy_has_the_gold_score_of_theory(n: int, expected: float) -> None:
    """E15: gold of variance 1, noise of 1.5: 1/√2.5 times the mean of the largest of n standard normals."""
    generator, groups = torch.Generator().manual_seed(0), 64 * 200 // n
    gold = torch.randn(n * groups, generator=generator, dtype=torch.float64)
    proxy = gold + math.sqrt(1.5) * torch.randn(n * groups, generator=generator, dtype=torch.float64)
    rows = [response(score=s, text=str(row)) for row, s in enumerate(proxy.tolist())]
    found = gold[[int(one.text) for one in best_of(rows, n)]]
    error = (found.std() / groups**0.5).item()
    assert abs(found.mean().item() - expected) < 4 * error
    assert expected > 8 * error  # the best by nothing would have 0


def test_best_of_fewer_than_were_drawn_looks_at_the_first_ones() -> None:
    rows = [response(score=score) for score in [1.0, 3.0, 9.0, -1.0, -2.0, 9.0]]
    assert [row.score for row in best_of(rows, 2, 3)] == [3.0, -1.0]
    assert [row.score for row in best_of(rows, 3, 3)] == [9.0, 9.0]
    with pytest.raises(ValueError, match="6 responses cannot be shared out in groups of 3 with a best of 4"):
        best_of(rows, 4, 3)


@pytest.mark.parametrize("n", [0, 4])
def test_responses_that_do_not_divide_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"6 responses cannot be shared out in groups of {n}"):
        best_of([response()] * 6, n)


def test_distinct_counts_word_pairs_within_texts_by_hand() -> None:
    assert distinct(["a b c", "b c"], 2) == pytest.approx(2 / 3)  # ab bc, bc; none across the texts
    assert distinct(["a b c", "b c"], 1) == pytest.approx(3 / 5)
    assert distinct(["a b"] * 10, 2) == pytest.approx(1 / 10)


def test_texts_without_a_word_pair_have_no_distinct_2() -> None:
    assert distinct(["", "word"], 2) is None
