"""A ranking from comparisons: everything in the order of the arms, the best first."""

import math

import pytest

from rlhf.data.outcomes import Comparison
from rlhf.evaluation.ranking import ranked, ranking_table


def won(a: str, b: str, label: float, count: float) -> Comparison:
    return Comparison(a=a, b=b, label=label, count=count, annotator=None, item="", where="")


CHAIN = [won("a", "b", 1, 10), won("b", "a", 1, 30), won("c", "b", 1, 16), won("c", "b", 0, 4)]
"""b beats a 30 to 10, c beats b 16 to 4; a and c never met."""


def test_scores_and_errors_of_a_chain_are_sums_of_log_odds_and_variances() -> None:
    found = ranked(CHAIN, ridge=0.0)
    assert [arm.arm for arm in found.arms] == ["c", "b", "a"]
    scores = [arm.score for arm in found.arms]
    assert sum(scores) == pytest.approx(0)
    assert scores[1] - scores[2] == pytest.approx(math.log(3))
    assert scores[0] - scores[1] == pytest.approx(math.log(4))
    # with u = c − b and v = b − a, apart: c is (2u + v)/3 from the mean, b (v − u)/3, a −(u + 2v)/3
    u, v = 1 / (20 * 0.8 * 0.2), 1 / (40 * 0.75 * 0.25)
    variances = [(4 * u + v) / 9, (u + v) / 9, (u + 4 * v) / 9]
    assert [arm.error for arm in found.arms] == pytest.approx([math.sqrt(one) for one in variances])
    assert [row[i] for i, row in enumerate(found.covariance)] == pytest.approx(variances)
    assert found.covariance[0][1] == pytest.approx((v - 2 * u) / 9)


def test_shares_and_winners_stand_by_their_arms() -> None:
    found = ranked(CHAIN, ridge=0.0)
    assert found.preferences == [[None, 0.8, None], [pytest.approx(0.2), None, 0.75], [None, 0.25, None]]
    assert (found.never_compared, found.condorcet) == (1, None)
    assert (found.copeland, found.borda) == (["c"], ["c"])
    assert [arm.comparisons for arm in found.arms] == [20, 60, 40]
    assert "Pairs of arms never compared, which count for no rule: 1" in ranking_table(found)
