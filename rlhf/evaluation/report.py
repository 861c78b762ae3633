"""Tables that people read (Markdown) and programs read (JSON)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rlhf.evaluation.best_of_n import BestOfN
from rlhf.evaluation.candidates import CandidateReport
from rlhf.evaluation.pairs import Agreement
from rlhf.evaluation.policies import Response, Summary
from rlhf.evaluation.reward import PairReport

SHOWN = 6
"""Prompts whose responses are printed side by side."""


def policy_table(summaries: Sequence[Summary], judge: str) -> str:
    """One row a policy."""
    head = ["policy", "score", "KL nats", "exact KL", judge, "distinct-2", "length", "ended", "perplexity"]
    rows = [
        [
            one.policy,
            f"{one.score:.2f} ± {one.score_error:.2f} (sd {one.score_std:.2f})",
            f"≤ {one.kl:.2f}" if one.kl_error is None else f"{one.kl:.2f} ± {one.kl_error:.2f}",
            "–" if one.kl_exact is None else f"{one.kl_exact:.2f}",
            "–" if one.judge is None else f"{one.judge:.3f} ± {one.judge_error:.3f}",
            "–" if one.distinct_2 is None else f"{one.distinct_2:.3f}",
            f"{one.length:.1f}",
            f"{one.ended:.0%}",
            f"{one.perplexity:.1f}",
        ]
        for one in summaries
    ]
    return markdown([head, *rows])


def best_of_n_table(curve: Sequence[BestOfN], judge: str) -> str:
    """One row a power of two, and one for the largest n."""
    head = ["n", "score", judge, "KL nats"]
    rows = [
        [
            str(one.n),
            f"{one.score:.2f} ± {one.score_error:.2f}",
            "–" if one.judge is None else f"{one.judge:.3f} ± {one.judge_error:.3f}",
            f"≤ {one.kl_bound:.2f}",
        ]
        for one in curve
        if one.n.bit_count() == 1 or one.n == len(curve)
    ]
    return markdown([head, *rows])


def agreement_table(agreements: Sequence[Agreement]) -> str:
    """One row a scorer."""
    head = ["scorer", "pairs", "accuracy", "95 % interval", "tied"]
    rows = [
        [
            one.scorer,
            str(one.pairs),
            f"{one.accuracy:.3f}",
            f"{one.low:.3f} – {one.high:.3f}",
            f"{one.tied:.1%}",
        ]
        for one in agreements
    ]
    return markdown([head, *rows])


def side_by_side(responses: Mapping[str, Sequence[Response]]) -> str:
    """The first prompts with every policy's response, score and KL."""
    blocks = []
    for row in zip(*(policy[:SHOWN] for policy in responses.values()), strict=True):
        lines = [f"**{row[0].prompt.strip()}** …"]
        for name, response in zip(responses, row, strict=True):
            lines.append(f"- {name} ({response.score:+.2f}): {response.text.strip()}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns line up in plain text too; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def write_json(
    file: Path,
    *,
    summaries: Sequence[Summary] = (),
    responses: Mapping[str, Sequence[Response]] | None = None,
    curve: Sequence[BestOfN] = (),
    pairs: PairReport | None = None,
    candidates: CandidateReport | None = None,
) -> None:
    """Everything in the tables, and every response and score behind them."""
    found = {} if pairs is None else asdict(pairs)
    content = {
        "policies": [asdict(one) for one in summaries],
        "pairs": found.pop("agreements", []),
        "reward": found or None,
        "candidates": None if candidates is None else asdict(candidates),
        "best_of_n": [asdict(one) for one in curve],
        "responses": {name: [asdict(one) for one in rows] for name, rows in (responses or {}).items()},
    }
    file.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
