"""``rlhf rank``: the table, the JSON file and the picture, and what ends it in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

VOTES = [
    ("q1", "m", "n", {"ann": "model_a", "bob": "model_a"}),
    ("q2", "n", "m", {"ann": "model_a", "bob": "model_b"}),
    ("q3", "m", "o", {"ann": "tie", "bob": "tie"}),
    ("q4", "o", "n", {"ann": "model_b", "bob": "model_b"}),
    ("q5", "o", "n", {"ann": "model_a"}),
]
"""Three arms; each gets at least half a win from a neighbour."""


def written(tmp_path: Path, votes: list[Any] = VOTES) -> str:
    rows = [
        {"question_id": q, "model_a": a, "model_b": b, "winner": winner, "judge": judge}
        for q, a, b, judged in votes
        for judge, winner in judged.items()
    ]
    file = tmp_path / "votes.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.path={file}"


def test_scores_winners_and_agreement(rlhf: Any, tmp_path: Path) -> None:
    """Wins: m–n 3 to 1, m–o 1 to 1, n–o 2 to 1."""
    outcome = rlhf("rank", written(tmp_path), "data.item_fields=[question_id]")
    assert outcome.status == 0, outcome.err
    folder = tmp_path / "runs" / "rank"
    found = json.loads((folder / "ranking.json").read_text())
    arms = {arm["arm"]: arm for arm in found["arms"]}
    assert [arm["arm"] for arm in found["arms"]] == ["m", "n", "o"]
    assert {name: arm["comparisons"] for name, arm in arms.items()} == {"m": 6, "n": 7, "o": 5}
    assert arms["m"]["borda"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert {name: arm["copeland"] for name, arm in arms.items()} == {"m": 1, "n": 0, "o": -1}
    assert found["condorcet"] is None  # m and o are level
    assert found["copeland"] == found["borda"] == ["m"]
    for name, won in {"m": 4.0, "n": 3.0, "o": 2.0}.items():  # at the maximum expected wins are the wins
        others = [(arms[name]["score"] - arms[other]["score"], n) for other, n in pairs_of(name)]
        assert sum(n / (1 + 2.718281828459045**-gap) for gap, n in others) == pytest.approx(won)
    (two,) = found["agreement"]["pairs"]
    assert (two["first"], two["second"], two["items"], two["agreed"]) == ("ann", "bob", 4, 0.75)
    # ann: m, n, tie, n of (m n), (m n), (m o), (n o); bob: m, m, tie, n: categories 0 2 1 0 and 0 0 1 0
    assert two["cohen"] == pytest.approx((0.75 - (2 * 3 + 1 * 1) / 16) / (1 - 7 / 16))
    for name in ("ranking.md", "ranking.png"):
        assert (folder / name).stat().st_size > 100
    assert "Condorcet winner: none" in outcome.out
    assert "| m   | " in outcome.out


def pairs_of(name: str) -> list[tuple[str, int]]:
    counts = {("m", "n"): 4, ("m", "o"): 2, ("n", "o"): 3}
    return [(pair[1 - pair.index(name)], n) for pair, n in counts.items() if name in pair]


def test_arms_that_cannot_be_compared_end_it_in_one_line(rlhf: Any, tmp_path: Path) -> None:
    apart = [*VOTES, ("q6", "x", "y", {"ann": "tie"})]
    outcome = rlhf("rank", "name=apart", written(tmp_path, apart))
    assert outcome.status == 1
    assert outcome.err.count("\n") == 1
    assert "{m, n, o}; {x, y}" in outcome.err
    best = [*VOTES, ("q6", "x", "m", {"ann": "model_a"})]
    outcome = rlhf("rank", "name=best", written(tmp_path, best))
    assert outcome.status == 1
    assert "{x} never lost to, nor tied with, {m, n, o}" in outcome.err
    assert rlhf("rank", "name=prior", "ridge=0.1", written(tmp_path, best)).status == 0


def test_a_share_has_no_annotator(rlhf: Any, tmp_path: Path) -> None:
    file = tmp_path / "votes.csv"
    file.write_text("a,b,outcome,annotator\nx,y,0.7,ann\n")
    outcome = rlhf("rank", f"data.path={file}")
    assert outcome.status == 1
    assert "votes.csv:2: an outcome of 0.7 is no single annotator's" in outcome.err
