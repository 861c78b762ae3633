"""Agreement of annotators, from comparisons: numbers from paper and pencil."""

import pytest

from rlhf.data.outcomes import Comparison
from rlhf.evaluation.annotators import agreement, annotator_table


def said(annotator: str | None, item: str, label: float, *, turned: bool = False) -> Comparison:
    """That x was preferred to y with ``label``; told from the other side where it is turned."""
    a, b = ("y", "x") if turned else ("x", "y")
    mu = 1 - label if turned else label
    return Comparison(a=a, b=b, label=mu, count=1, annotator=annotator, item=item, where="rows.jsonl:1")


TWO = [
    *(said("ann", "1", 1), said("bob", "1", 1, turned=True)),
    *(said("ann", "2", 1), said("bob", "2", 0)),
    *(said("ann", "3", 0.5), said("bob", "3", 0.5)),
    *(said("ann", "4", 0.5), said("bob", "4", 0, turned=True)),
]
"""Units 0 0, 0 2, 1 1, 1 2 of x, tie, y: three values 0, three 1, two 2."""


def test_alpha_counts_a_tie_as_far_as_any_outcome_or_half_way() -> None:
    """Observed (2 + 2)/8 of expected 42/56; with squares of distances (8 + 2)/8 of 78/56."""
    found = agreement(TWO)
    assert found is not None
    assert (found.items, found.repeated) == (4, 0)
    assert found.alpha == pytest.approx(1 / 3)
    assert found.alpha_interval == pytest.approx(1 - (10 / 8) / (78 / 56))
    (pair,) = found.pairs
    assert (pair.agreed, pair.cohen) == (0.5, pytest.approx((0.5 - 4 / 16) / (1 - 4 / 16)))


def test_an_annotators_first_judgement_counts_and_further_ones_are_told() -> None:
    again = agreement([*TWO, said("ann", "2", 0), said("ann", "3", 1, turned=True)])
    once = agreement(TWO)
    assert again is not None
    assert once is not None
    assert again.repeated == 2
    assert (again.alpha, again.pairs) == (once.alpha, once.pairs)
    assert "Judgements that repeat an annotator's own, left out here: 2" in annotator_table(again)


def test_nobody_agrees_where_no_item_was_judged_twice() -> None:
    assert agreement([said("ann", "1", 1), said("bob", "2", 1), said(None, "1", 0)]) is None
