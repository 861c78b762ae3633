"""Judgements of every shape, read from rows, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from rlhf.data.comparison_rows import ComparisonFields, ComparisonRow, Judgement, comparison_rows
from rlhf.data.comparisons import ComparisonData, Ties
from rlhf.data.sources import Row

Write = Callable[..., str]


def read(*rows: dict[str, Any], **names: Any) -> list[ComparisonRow]:
    stored = [Row(values=values, where=f"rows.jsonl:{number}") for number, values in enumerate(rows, 1)]
    return comparison_rows(stored, ComparisonFields(**names))


def judged(row: ComparisonRow) -> list[tuple[int, int, float]]:
    return [(one.first, one.second, one.label) for one in row.judgements]


def test_a_pair_carries_its_probability_and_margin() -> None:
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    plain, soft = read(pair, pair | {"probability": 0.8, "margin": 2})
    assert plain.responses == soft.responses == ["a", "b"]
    assert plain.judgements == [Judgement(first=0, second=1, label=1.0, margin=0.0)]
    assert soft.judgements == [Judgement(first=0, second=1, label=0.8, margin=2.0)]


def test_a_ranking_is_all_its_pairs_with_ties_and_without_the_unranked() -> None:
    ranked = {"prompt": "p", "responses": ["a", "b", "c", "d"], "ranks": [2, 1, None, 2]}
    (row,) = read(ranked | {"chosen": None, "response": None, "label": None})  # as columnar files have it
    assert judged(row) == [(1, 0, 1.0), (0, 3, 0.5), (1, 3, 1.0)]


def test_labelled_responses_to_one_prompt_are_compared_good_against_bad() -> None:
    rows = [
        {"prompt": "p", "response": "a", "label": True},
        {"prompt": "q", "response": "x", "label": True},
        {"prompt": "p", "completion": "b", "label": 0},
        {"prompt": "p", "response": "c", "label": True},
    ]
    first, second = read(*rows)
    assert (first.responses, judged(first)) == (["a", "b", "c"], [(0, 1, 1.0), (2, 1, 1.0)])
    assert (second.responses, judged(second)) == (["x"], [])


def test_a_labelled_context_prefers_the_words_for_its_label() -> None:
    """C:A ≻ C:B: the words of the right label win."""
    rows = [{"prompt": "fun .", "label": True}, {"prompt": "dull .", "label": False}]
    good, bad = read(*rows, label_texts=[" good", " bad"])
    assert (good.responses, bad.responses) == ([" good", " bad"], [" bad", " good"])
    assert judged(good) == judged(bad) == [(0, 1, 1.0)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "a", "rejected": "b", "probability": 1.5}, "field 'probability' is 1.5, expected a prob"),
        ({"responses": ["a"], "ranks": [1]}, "field 'responses' must be a list of at least 2 responses"),
        ({"responses": ["a", "b"], "ranks": [1]}, "'ranks' must be a list of 2 ranks, one a response, got 1"),
        ({"responses": ["a", "b"], "ranks": [1, "x"]}, "field 'ranks' holds 'x', expected numbers"),
        ({"responses": ["a", "b"]}, "no field 'ranks'"),
        ({"responses": ["a", ""], "ranks": [1, 2]}, "field 'responses', response 1 is empty"),
        ({"label": True}, r"a label without a response needs words to compare: data.label_texts="),
        ({"label": "yes"}, "field 'label' is 'yes', expected true or false"),
        ({"response": "a", "label": 0.5}, "field 'label' is 0.5, expected true"),
        ({}, "no field 'chosen'"),
    ],
)
def test_a_malformed_row_is_refused_by_name(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^rows.jsonl:1: .*{message}|^rows.jsonl:1: {message}"):
        read({"prompt": "p"} | row)


@pytest.mark.parametrize("texts", [["a"], ["a", "a"]])
def test_words_for_labels_are_two(texts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"ComparisonData.label_texts must be two different texts, got"):
        ComparisonData(path="x", label_texts=texts)


RANKED = [
    {"prompt": "p", "responses": ["aa", "b", "b"], "ranks": [1, 2, 2]},
    {"prompt": "p", "responses": ["a", "b"], "ranks": [1, 1]},
    {"prompt": "p", "responses": ["a", "a"], "ranks": [1, 2]},
    {"prompt": "p", "responses": ["a", "b"], "ranks": [1, None]},
]


def test_prompts_without_a_comparison_are_left_out_and_counted(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: Write
) -> None:
    """Numerics D23; texts of the same tokens cannot be compared (D6)."""
    path = write_jsonl(*RANKED)
    data = ComparisonData(path=path).load(tokenizer)
    nothing = {"no two responses can be compared": 1, "chosen and rejected are identical": 1}
    assert (len(data), data.report.dropped) == (2, nothing)
    dropped = ComparisonData(path=path, ties=Ties.drop).load(tokenizer)
    assert (len(dropped), dropped.report.dropped["no two responses can be compared"]) == (1, 2)


def test_a_batch_has_the_probability_and_the_margin_of_a_comparison(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: Write
) -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "probability": 0.75, "margin": 0.5}
    judged = ComparisonData(path=write_jsonl(row)).load(tokenizer).batch(torch.tensor([0])).judged
    assert judged.compared.tolist() == [[[False, True], [False, False]]]
    assert judged.label.tolist() == [[[0, 0.75], [0, 0]]]
    assert judged.margin.tolist() == [[[0, 0.5], [0, 0]]]


def test_a_batch_holds_every_response_once(tokenizer: PreTrainedTokenizerFast, write_jsonl: Write) -> None:
    batch = ComparisonData(path=write_jsonl(*RANKED)).load(tokenizer).batch(torch.tensor([1, 0]))
    assert batch.real.tolist() == [[True, True, False], [True, True, True]]
    texts = batch.texts()  # the first response to each prompt, then the second, …
    found = [tokenizer.decode(row[mask]) for row, mask in zip(texts.tokens, texts.mask, strict=True)]
    assert found == ["a<eos>", "aa<eos>", "b<eos>", "b<eos>", "b<eos>"]
    assert batch.judged.label[0, 0, 1] == 0.5
    assert batch.judged.compared[1].nonzero().tolist() == [[0, 1], [0, 2]]
    spread = batch.spread(torch.arange(5.0))
    assert spread.tolist() == [[0.0, 2.0, 0.0], [1.0, 3.0, 4.0]]
