"""``rlhf query``: the pairs of highest value, none twice, the same for the same seed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

PROMPTS = ["p", "q"]
SCORES = {
    "one": {"p": {"x": 0.0, "y": 2.0, "z": 0.1}, "q": {"x": 0.0, "y": 0.0, "z": 5.0}},
    "two": {"p": {"x": 0.0, "y": -2.0, "z": 0.2}, "q": {"x": 0.0, "y": 0.1, "z": 6.0}},
}
"""Two models that disagree about y of p, and agree about q."""


def written(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def scores(tmp_path: Path) -> str:
    files = [
        written(
            tmp_path / f"{model}.jsonl",
            [
                {"prompt": prompt, "response": response, "score": score}
                for prompt, responses in table.items()
                for response, score in responses.items()
            ],
        )
        for model, table in SCORES.items()
    ]
    return f"scores=[{','.join(files)}]"


def asked(rlhf: Any, folder: Path, name: str, *arguments: str) -> list[dict[str, Any]]:
    outcome = rlhf("query", f"name={name}", *arguments)
    assert outcome.status == 0, outcome.err
    file = folder / "runs" / name / "queries.jsonl"
    assert outcome.out.endswith(f" left out: {file}\n")
    return [json.loads(line) for line in file.open()]


def sets(rows: list[dict[str, Any]]) -> list[tuple[str, frozenset[str]]]:
    return [(row["prompt"], frozenset((row["a"], row["b"]))) for row in rows]


def test_where_the_models_disagree_is_asked_first(rlhf: Any, tmp_path: Path, scores: str) -> None:
    rows = asked(rlhf, tmp_path, "first", scores, "acquisition=disagreement", "count=2")
    assert set(sets(rows)) == {("p", frozenset("xy")), ("p", frozenset("yz"))}
    values = {pair: row["value"] for pair, row in zip(sets(rows), rows, strict=True)}
    for pair, gaps in ((frozenset("xy"), (2.0, -2.0)), (frozenset("yz"), (1.9, -2.2))):
        one, other = (1 / (1 + math.exp(-gap)) for gap in gaps)
        assert values["p", pair] == pytest.approx(((one - other) / 2) ** 2)
    spread = asked(rlhf, tmp_path, "spread", scores, "acquisition=disagreement", "count=2", "per_prompt=1")
    assert [row["prompt"] for row in spread] == ["p", "q"]


def test_no_pair_is_asked_twice_in_whatever_order(rlhf: Any, tmp_path: Path, scores: str) -> None:
    first = asked(rlhf, tmp_path, "first", scores, "count=2")
    swapped = [{"prompt": row["prompt"], "chosen": row["b"], "rejected": row["a"]} for row in first]
    labelled = written(tmp_path / "labelled.jsonl", swapped)
    rest = asked(rlhf, tmp_path, "rest", scores, f"asked=[{labelled}]", "count=10")
    assert len(rest) == 4
    assert len(set(sets(first + rest))) == 6
    outcome = rlhf("query", "name=none", scores, f"asked=[{labelled},runs/rest/queries.jsonl]")
    assert outcome.status == 1
    assert "no pair is left to be asked: 6 rows read, 0 written, 6 (6 asked before) left out" in outcome.err


def test_answered_queries_train_a_reward_model_as_pairs_would_and_are_not_asked_again(
    rlhf: Any, tmp_path: Path, workspace: Any, scores: str
) -> None:
    first = asked(rlhf, tmp_path, "first", scores, "count=3")
    answers = [{"winner": "a"}, {"preferred": "b"}, {"outcome": "tie"}]
    labelled = written(
        tmp_path / "labelled.jsonl", [q | said for q, said in zip(first, answers, strict=True)]
    )
    by_hand = [
        {"prompt": q["prompt"], "chosen": q[better], "rejected": q[worse], "probability": sure}
        for q, (better, worse, sure) in zip(
            first, [("a", "b", 1), ("b", "a", 1), ("a", "b", 0.5)], strict=True
        )
    ]
    weights = []
    for name, file in (("queries", labelled), ("pairs", written(tmp_path / "pairs.jsonl", by_hand))):
        outcome = rlhf(
            *("reward", f"name={name}", f"model.path={workspace.sft}", f"data.path={file}", "engine=plain"),
            *("batch_size=3", "micro_batch_size=3", "optimizer.lr=1e-2", "cadence.checkpoint_every=0"),
        )
        assert outcome.status == 0, outcome.err
        weights.append(load_file(tmp_path / "runs" / name / "model" / "model.safetensors"))
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    rest = asked(rlhf, tmp_path, "rest", scores, f"asked=[{labelled}]", "count=10")
    assert len(rest) == 3
    assert not set(sets(rest)) & set(sets(first))


def test_what_was_said_of_a_pair_before_is_not_written_beside_its_turned_sides(
    rlhf: Any, tmp_path: Path
) -> None:
    said = {"winner": "a", "chosen": "x", "probability": 0.2, "model_a": "gpt", "response": "x", "label": 1}
    rows = [{"prompt": str(i), "a": f"x{i}", "b": f"y{i}", **said, "source": i} for i in range(8)]
    pool = written(tmp_path / "pool.jsonl", rows)
    for row in asked(rlhf, tmp_path, "new", f"pool={pool}", "acquisition=random"):
        assert set(row) == {"prompt", "a", "b", "source", "value"}


def test_an_unanswered_query_is_named_by_file_and_line(rlhf: Any, tmp_path: Path, workspace: Any) -> None:
    file = written(tmp_path / "labelled.jsonl", [{"prompt": "p", "a": "x", "b": "y", "value": 0.1}])
    for command in ("reward", "preference"):
        outcome = rlhf(command, "name=new", f"model.path={workspace.sft}", f"data.path={file}")
        assert outcome.status == 1
        assert "labelled.jsonl:1: no field outcome, winner, preferred, label with an outcome" in outcome.err


def test_the_pool_is_deduplicated_and_its_order_does_not_count(rlhf: Any, tmp_path: Path) -> None:
    rows = [{"prompt": str(i % 7), "a": f"a{i}", "b": f"b{i}", "source": i} for i in range(40)]
    turned = [row | {"a": row["b"], "b": row["a"]} for row in reversed(rows)]
    same = {"prompt": "p", "a": "x", "b": "x"}
    pool = written(tmp_path / "pool.jsonl", [*rows, turned[3], same])
    other = written(tmp_path / "other.jsonl", turned)
    random = ("acquisition=random", "count=15")
    outcome = rlhf("query", "name=one", f"pool={pool}", *random)
    assert (
        "42 rows read, 15 written, 27 (1 repeated, 1 of identical responses, 25 kept for later)"
        in outcome.out
    )
    one = [json.loads(line) for line in (tmp_path / "runs" / "one" / "queries.jsonl").open()]
    assert asked(rlhf, tmp_path, "two", f"pool={other}", *random) == one
    third = asked(rlhf, tmp_path, "three", f"pool={other}", *random, "seed=1")
    assert set(sets(third)) != set(sets(one))
    shown_first = [row["a"][0] for row in asked(rlhf, tmp_path, "all", f"pool={other}", random[0])]
    assert 8 <= shown_first.count("a") <= 32  # by lot, not as the file has it
    assert all(row["a"][1:] == str(row["source"]) for row in one)  # other columns stay


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["acquisition=random"], "pool must name a file of pairs, or scores one whose responses are paired"),
        (
            ["pool=pool.jsonl", "scores=[pool.jsonl,pool.jsonl]"],
            "Query.scores must name different files, got pool.jsonl, pool.jsonl",
        ),
        (
            ["pool=pool.jsonl"],
            "scores must name at least 2 files for InformationGain, one a reward model, got 0",
        ),
        (
            ["pool=lacking.jsonl", "acquisition=random"],
            "lacking.jsonl:1: no two responses, in fields response_a and response_b, a and b, chosen and "
            "rejected; the row has 'prompt', 'response'",
        ),
    ],
)
def test_what_is_missing_is_named(rlhf: Any, tmp_path: Path, arguments: list[str], message: str) -> None:
    written(tmp_path / "pool.jsonl", [{"prompt": "p", "a": "x", "b": "y"}])
    written(tmp_path / "lacking.jsonl", [{"prompt": "p", "response": "x"}])
    outcome = rlhf("query", *arguments)
    assert outcome.status == 1
    assert message in outcome.err


def test_a_response_without_a_score_is_named(rlhf: Any, tmp_path: Path, scores: str) -> None:
    pool = written(tmp_path / "pool.jsonl", [{"prompt": "p", "a": "x", "b": "unheard of"}])
    outcome = rlhf("query", scores, f"pool={pool}")
    assert outcome.status == 1
    assert "pool.jsonl:1: " in outcome.err
    assert "one.jsonl has no score of the response 'unheard of'" in outcome.err
