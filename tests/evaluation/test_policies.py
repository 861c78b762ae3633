import math
from typing import Any

import pytest

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
