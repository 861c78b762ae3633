"""Two responses and an outcome, as an answered query has them, read as a pair wherever pairs are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rlhf.data.comparison_rows import ComparisonFields, comparison_rows
from rlhf.data.comparisons import ComparisonData
from rlhf.data.encoding import Encoded
from rlhf.data.feedback import FeedbackData
from rlhf.data.sets import PreferenceData
from rlhf.data.sources import Row
from rlhf.data.verdicts import verdict_of

Write = Callable[..., str]
QUERY = {"prompt": "p", "a": "x", "b": "y", "value": 0.3}
TIE = 0.5


def said(**values: Any) -> tuple[str, str, float | None]:
    verdict = verdict_of(Row(values=QUERY | values, where="rows.jsonl:7"))
    assert verdict is not None
    return verdict.better, verdict.worse, verdict.label


def test_the_better_side_is_the_one_that_people_named() -> None:
    for first in ({"winner": "a"}, {"preferred": "A"}, {"outcome": 1}, {"label": "x"}, {"winner": "1"}):
        assert said(**first) == ("a", "b", 1.0), first
    for second in ({"winner": "b"}, {"preferred": "B"}, {"outcome": 0}, {"label": "y"}, {"outcome": "0.0"}):
        assert said(**second) == ("b", "a", 1.0), second
    for tie in ("tie", "Tie (both bad)", "both_bad", "bothbad", "draw", "tied", 0.5):
        assert said(winner=tie) == ("a", "b", TIE), tie
    assert said(outcome=0.75) == ("a", "b", 0.75)
    assert said(outcome=0.25) == ("b", "a", 0.75)
    assert said(winner=None) == ("a", "b", None)
    assert said(outcome=None, winner="b") == ("b", "a", 1.0)  # as columnar files have it


def test_response_a_and_response_b_are_responses_and_models_are_not() -> None:
    arena = {"prompt": "p", "model_a": "gpt", "model_b": "claude", "winner": "model_b"}
    assert verdict_of(Row(values=arena, where="")) is None
    named = {"prompt": "p", "a": "gpt", "b": "claude", "response_a": "x", "response_b": "y", "winner": "b"}
    verdict = verdict_of(Row(values=named, where=""))
    assert verdict is not None
    assert (verdict.better, verdict.worse) == ("response_b", "response_a")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {},
            "no field outcome, winner, preferred, label with an outcome; the row has 'prompt', 'a', 'b', 'v",
        ),
        ({"winner": "left"}, "field 'winner' is 'left', which is none of a, b, tie"),
        ({"winner": "drawing"}, "field 'winner' is 'drawing', which is none of a, b, tie"),
        ({"winner": ""}, "field 'winner' is '', which is none of a, b, tie"),
        ({"winner": True}, "field 'winner' is True, which is none of a, b, tie"),
        ({"winner": 2}, "field 'winner' is 2, expected 1, 0.5, 0 or a share between"),
        ({"a": "b", "b": "a", "winner": "a"}, "field 'winner' is 'a', which could mean several of a, b, tie"),
        ({"a": "tie", "winner": "tie"}, "field 'winner' is 'tie', which could mean several of a, b, tie"),
        ({"winner": "a", "a": ""}, "field 'a' is empty"),
        ({"winner": "a", "b": 3}, "field 'b' is a number, expected a string or a list of messages"),
    ],
)
def test_a_malformed_answer_names_file_and_line(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: Write, values: dict[str, Any], message: str
) -> None:
    path = write_jsonl(QUERY | {"winner": "a"}, QUERY | values)
    for load in (ComparisonData(path=path).load, FeedbackData(path=path).load_pairs):
        with pytest.raises(ValueError) as refusal:
            load(tokenizer)
        assert str(refusal.value).startswith(f"{path}:2: {message}")


def test_an_answered_query_is_a_judgement_of_a_reward_model() -> None:
    rows = [
        QUERY | {"winner": "b", "margin": 2},
        QUERY | {"winner": "tie"},
        QUERY | {"outcome": 0.25},
        QUERY | {"winner": None},
        QUERY | {"prompt": [{"role": "user", "content": "p"}], "winner": "a"},
    ]
    stored = [Row(values=values, where="") for values in rows]
    found = comparison_rows(stored, ComparisonFields())
    told = [
        (row.responses, [(j.first, j.second, j.label, j.margin) for j in row.judgements]) for row in found
    ]
    assert told == [
        (["y", "x"], [(0, 1, 1.0, 2.0)]),
        (["x", "y"], [(0, 1, 0.5, 0.0)]),
        (["y", "x"], [(0, 1, 0.75, 0.0)]),
        (["x", "y"], []),
        (["x", "y"], [(0, 1, 1.0, 0.0)]),
    ]
    assert found[4].prompt == [{"role": "user", "content": "p"}]


def texts(tokenizer: Any, side: list[Encoded]) -> list[str]:
    return [
        tokenizer.decode([t for t, own in zip(one.tokens, one.targets, strict=True) if own][:-1])
        for one in side
    ]


def test_a_policy_learns_from_the_queries_that_somebody_won(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: Write
) -> None:
    rows = [
        {"prompt": "the", "a": " sea", "b": " film", "winner": "b"},
        {"prompt": "the", "response_a": " sea", "response_b": " story", "winner": "tie"},
        {"prompt": "the", "a": " sea", "b": " story", "winner": "a"},
        {"prompt": "the", "chosen": " film", "rejected": " story"},
    ]
    path = write_jsonl(*rows)
    for pairs in (FeedbackData(path=path).load_pairs(tokenizer), PreferenceData(path=path).load(tokenizer)):
        assert texts(tokenizer, pairs.chosen) == [" film", " sea", " film"]
        assert texts(tokenizer, pairs.rejected) == [" sea", " story", " story"]
        assert str(pairs.report).endswith("4 rows read, 3 kept, 0 truncated, 1 dropped (no winner)")
    single = FeedbackData(path=path).load_labelled(tokenizer)
    assert texts(tokenizer, single.texts) == [" film", " sea", " sea", " story", " film", " story"]
    assert single.desirable == [True, False] * 3


def test_a_policy_cannot_learn_from_a_share(tokenizer: PreTrainedTokenizerFast, write_jsonl: Write) -> None:
    path = write_jsonl(QUERY | {"winner": "a"}, QUERY | {"outcome": 0.2})
    with pytest.raises(ValueError, match=r":2: the outcome is a share, 0\.8 for 'b', which only rlhf reward"):
        PreferenceData(path=path).load(tokenizer)


def test_words_for_labels_make_rows_contexts_whatever_else_they_have() -> None:
    row = Row(values=QUERY | {"label": True}, where="")
    (found,) = comparison_rows([row], ComparisonFields(label_texts=[" good", " bad"]))
    assert found.responses == [" good", " bad"]
