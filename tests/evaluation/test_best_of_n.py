import math
from collections.abc import Sequence

import pytest

from rlhf.evaluation.best_of_n import best_of_n
from rlhf.evaluation.policies import Response


def responses(scores: Sequence[float], judges: Sequence[float | None]) -> list[Response]:
    return [
        Response(
            prompt="a",
            text="b",
            score=score,
            judge=judge,
            kl=0.0,
            exact_kl=0.0,
            ref_logprob=-1.0,
            tokens=1,
            ended=True,
        )
        for score, judge in zip(scores, judges, strict=True)
    ]


def test_a_curve_by_hand() -> None:
    """Two prompts, three responses each; of the best of two of 1 2 4 two are 4 and one is 2."""
    one, two, three = best_of_n(responses([1, 4, 2, 5, 5, 5], [0.3, 0.0, 0.6, 1.0, 2.0, 3.0]), 3)
    assert [point.n for point in (one, two, three)] == [1, 2, 3]
    assert one.score == pytest.approx((7 / 3 + 5) / 2)
    assert two.score == pytest.approx((10 / 3 + 5) / 2)
    assert three.score == pytest.approx((4 + 5) / 2)
    assert three.score_error == pytest.approx(0.5)  # 4 and 5: deviation √½, over √2
    assert two.judge == pytest.approx(((0.0 + 0.0 + 0.6) / 3 + 2.0) / 2)  # ties share their judge's mean
    assert three.judge == pytest.approx((0.0 + 2.0) / 2)
    assert three.judge_error == pytest.approx(1.0)
    assert [point.kl_bound for point in (one, two)] == [0.0, pytest.approx(math.log(2) - 0.5)]


def test_without_a_judge_there_is_no_curve_of_one() -> None:
    assert {point.judge for point in best_of_n(responses([1, 2, 3, 4], [None] * 4), 2)} == {None}
    assert {point.judge_error for point in best_of_n(responses([1, 2, 3, 4], [None] * 4), 2)} == {None}
