from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from rlhf.rewards.instructions import Instructions

pytestmark = pytest.mark.skipif(find_spec("if_verifiable") is None, reason="if-verifiable is not installed")

NO_COMMA = {"id": "punctuation:no_comma", "arguments": {}}
SEA = {"id": "keywords:existence", "arguments": {"keywords": ["sea"]}}
SHORT = {"id": "length_constraints:number_words", "arguments": {"num_words": 4, "relation": "less than"}}


def verdict(response: str, *constraints: Any, every: bool = False) -> float:
    rows = [{"instructions": list(constraints)}]
    (score,) = Instructions(every=every)(["the prompt"], [response], rows)
    return score


@pytest.mark.parametrize(
    ("response", "score"),
    [("The sea.", 1.0), ("The sea, so blue.", 2 / 4), ("The lake, so blue.", 1 / 4), ("", 0.0), (" \n", 0.0)],
)
def test_the_score_is_the_share_of_constraints_that_are_followed(response: str, score: float) -> None:
    """Four constraints: the first holds for every text that is not empty."""
    anything = {"id": "keywords:forbidden_words", "arguments": {"forbidden_words": ["mountain"]}}
    assert verdict(response, anything, NO_COMMA, SEA, SHORT) == score


@pytest.mark.parametrize(("response", "score"), [("The sea.", 1.0), ("The sea, so blue.", 0.0), ("", 0.0)])
def test_with_every_one_constraint_that_is_not_followed_leaves_nothing(response: str, score: float) -> None:
    assert verdict(response, SEA, NO_COMMA, every=True) == score


def test_an_empty_response_follows_nothing() -> None:
    assert verdict("", NO_COMMA) == 0.0


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        ([], r"column 'instructions' must be a list of constraints, got \[\]"),
        ([{"id": "a:b", "arguments": {}}], "there is no constraint 'a:b'"),
        ([{"id": "punctuation:no_comma"}], "no column 'arguments', it has 'id'"),
        ([{"id": "punctuation:no_comma", "arguments": {"x": 1}}], "does not take the arguments"),
    ],
)
def test_malformed_constraints_are_refused(constraints: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        verdict("so", *constraints)


def test_rows_without_constraints_are_refused() -> None:
    with pytest.raises(ValueError, match="the prompt's row has no column 'instructions', it has 'answer'"):
        Instructions()(["a"], ["b"], [{"answer": 1}])
