import math

import pytest
import torch

from rlhf.data.categories import Categories
from rlhf.evaluation.bootstrap import Bootstrap
from rlhf.evaluation.candidates import Candidates, best_of, candidate_report, ties_of, ties_parts

BOOTSTRAP = Bootstrap(resamples=20)


def row(right: list[float], wrong: list[float], name: str | None = None) -> Candidates:
    return Candidates(
        right=torch.tensor(right, dtype=torch.float64),
        wrong=torch.tensor(wrong, dtype=torch.float64),
        id=name,
    )


def test_the_right_response_must_be_the_best_of_four_by_itself() -> None:
    rows = [
        row([2.0], [1.0, 0.0, 1.9]),  # best
        row([2.0], [2.0, 0.0, 1.0]),  # level with one
        row([2.0], [2.0, 2.0, 2.0]),  # a constant reward
        row([1.0], [0.0, 3.0, 0.0]),  # beaten
    ]
    right, tied, credit = best_of(rows)
    assert right.tolist() == [1, 0, 0, 0]
    assert tied.tolist() == [0, 1, 1, 0]
    assert credit.tolist() == [1, 1 / 2, 1 / 4, 0]  # RewardBench 2 shares the row among equals


def test_the_ties_score_of_a_hand_worked_case() -> None:
    """Two questions.

    a: one right answer 2 above; several right answers span 1 and stand 3 above the best wrong one. Everything
    holds, also with the smaller gap 2: margin tanh(2/1 − 1).
    b: the one right answer is ½ above; several right answers span 2 and stand 1 above. Right, not preferred:
    margin tanh(½/2 − 1).
    """
    rows = [
        row([3.0], [1.0, 0.0], "ref:a"),
        row([5.0, 4.0], [1.0, 0.5], "tied:a"),
        row([6.0, 4.0], [3.0, 0.5], "tied:b"),
        row([1.5], [1.0, 0.0], "ref:b"),
    ]
    parts = ties_parts(ties_of(rows))
    expected = [[1, 1, 1, 1, math.tanh(1)], [1, 1, 0, 0, math.tanh(-0.75)]]
    torch.testing.assert_close(parts, torch.tensor(expected, dtype=torch.float64))
    division = Categories().of([({"subset": "ties"}, "")] * 4)
    assert division is not None
    report = candidate_report(rows, division, "Ties", BOOTSTRAP)
    assert report.ties is not None
    score = 0.3 + 0.3 + 0.2 / 2 + 0.2 / 2 + 0.01 * (math.tanh(1) + math.tanh(-0.75)) / 2
    assert report.ties.score == pytest.approx(score)
    assert report.breakdown.mean.accuracy.value == pytest.approx(score)
    assert (report.ties.prompts, report.ties.preferred, report.ties.preferred_hard) == (2, 0.5, 0.5)
    assert report.shared_credit == {}


def test_each_part_of_the_ties_score_is_lost_by_its_own_mistake() -> None:
    def parts(reference: Candidates, tied: Candidates) -> list[float]:
        return ties_parts([(reference, tied)])[0, :4].tolist()

    good, tied = row([5.0], [1.0]), row([5.0, 4.0], [1.0])
    assert parts(good, tied) == [1, 1, 1, 1]
    assert parts(row([1.0], [1.0]), tied) == [0, 1, 1, 0]  # the reference question is level: gap 0
    assert parts(row([1.5], [1.0]), tied) == [1, 1, 1, 0]  # its gap is smaller than the spread
    assert parts(good, row([5.0, 1.0], [1.0])) == [
        1,
        0,
        0,
        0,
    ]  # one right answer is no better than a wrong one
    assert parts(good, row([5.0, 2.0], [1.0])) == [
        1,
        1,
        0,
        0,
    ]  # right answers differ by more than right and wrong


def test_right_answers_that_score_alike_have_no_margin_term() -> None:
    assert ties_parts([(row([2.0], [1.0]), row([3.0, 3.0], [1.0]))]).tolist() == [[1, 1, 1, 1, 0]]


def test_a_constant_reward_has_accuracy_zero_and_a_quarter_of_the_credit() -> None:
    rows = [row([1.0], [1.0, 1.0, 1.0]), row([1.0], [1.0], "ref:1"), row([1.0, 1.0], [1.0], "tied:1")]
    division = Categories().of([({"subset": name}, "") for name in ("Math", "Ties", "Ties")])
    assert division is not None
    report = candidate_report(rows, division, "ties", BOOTSTRAP)
    maths, ties = report.breakdown.categories
    assert (maths.accuracy.value, maths.tied, report.shared_credit) == (0.0, 1.0, {"Math": 0.25})
    assert (ties.accuracy.value, ties.tied) == (0.0, 1.0)
    assert report.breakdown.mean.accuracy.value == 0


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["ref:1"], "the ties subset has ref:1 without tied:1"),
        (["tied:1", "ref:2", "tied:2"], "the ties subset has tied:1 without ref:1"),
        (["ref:1", "ref:1"], "two rows of the ties subset have the id ref:1"),
        (["17"], "a row of the ties subset has the id '17', expected ref:NAME or tied:NAME"),
        ([None], "a row of the ties subset has the id None"),
    ],
)
def test_a_ties_subset_that_does_not_pair_up_is_refused(names: list[str | None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ties_of([row([1.0], [0.0], name) for name in names])
