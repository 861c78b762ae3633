"""Pairs that people are to compare: the pool, what was asked before, and the scores of their responses."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from rlhf.data.outcomes import SIDES
from rlhf.data.rows import COMPLETION, Prompt, preference_row
from rlhf.data.scored import Account, ScoredRow, scored_rows
from rlhf.data.sources import Row, read_rows
from rlhf.data.verdicts import OUTCOMES, RESPONSES, response_fields

PAIR = ("chosen", "rejected")
"""Fields with two responses of which one is known to be better."""
SPOKEN_FOR = {
    *(name for sides in SIDES for name in sides),
    *OUTCOMES,
    *PAIR,
    *("probability", "response", COMPLETION, "messages", "responses", "ranks"),
}
"""Columns that would say something of the responses when the answered query is read, and perhaps of the wrong
one; a query is written without them."""

Scores = dict[tuple[str, str], float]
"""By prompt and response."""


@dataclass(kw_only=True, slots=True)
class Query:
    """A prompt and two responses, in an order that does not depend on where they came from."""

    prompt: Prompt
    first: str
    second: str
    columns: dict[str, Any]
    where: str

    @property
    def key(self) -> str:
        """Equal for the same pair, whichever response came first."""
        return json.dumps([self.prompt, self.first, self.second], sort_keys=True, ensure_ascii=False)

    def draw(self, seed: int, purpose: str) -> float:
        """A number in [0, 1) of this pair's own."""
        digest = hashlib.sha256(f"{seed} {purpose} {self.key}".encode()).digest()
        return int.from_bytes(digest[:6], "big") / 2**48

    def line(self, seed: int, value: float) -> dict[str, Any]:
        """The row to be shown to people, which response comes first by lot."""
        shown = [self.first, self.second] if self.draw(seed, "side") < 1 / 2 else [self.second, self.first]
        texts = {"prompt": self.prompt, "a": shown[0], "b": shown[1]}
        columns = {name: given for name, given in self.columns.items() if name not in SPOKEN_FOR}
        return texts | columns | texts | {"value": value}


def pairs_of_file(path: str) -> list[Query]:
    """The pairs of a file: rows of a prompt and two responses, whatever was said of them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a row lacks prompt or responses, or one of them is of the wrong kind.
    """
    return [_query(row) for row in read_rows(path)]


def pairs_of_responses(rows: Sequence[ScoredRow]) -> list[Query]:
    """Every two responses to one prompt."""
    groups: dict[str, list[ScoredRow]] = {}
    for row in rows:
        groups.setdefault(_text(row.prompt), []).append(row)
    return [
        _ordered(one.prompt, one.response, other.response, {}, one.where)
        for group in groups.values()
        for one, other in combinations(group, 2)
    ]


def open_pairs(pool: Iterable[Query], asked: Iterable[Query], account: Account) -> list[Query]:
    """Each pair of the pool once, without those asked before and those with nothing to compare; by their key.

    Sorted so that nothing after it depends on the order of the pool.
    """
    before = {query.key for query in asked}
    found: dict[str, Query] = {}
    for query in pool:
        account.read += 1
        if query.first == query.second:
            account.left_out["of identical responses"] += 1
        elif query.key in before:
            account.left_out["asked before"] += 1
        elif query.key in found:
            account.left_out["repeated"] += 1
        else:
            found[query.key] = query
    return [found[key] for key in sorted(found)]


def first_of(
    pairs: Sequence[Query], values: Sequence[float], *, count: int, per_prompt: int | None, seed: int
) -> list[int]:
    """Numbers of the ``count`` pairs of the highest value, the best first; a lot orders equal values.

    Args:
        pairs: what can be asked.
        values: of each.
        count: wanted; all, where there are fewer.
        per_prompt: most pairs of one prompt; None for any number.
        seed: of the lots.
    """
    order = sorted(range(len(pairs)), key=lambda i: (-values[i], pairs[i].draw(seed, "order")))
    taken: list[int] = []
    used: Counter[str] = Counter()
    for i in order:
        prompt = _text(pairs[i].prompt)
        if len(taken) < count and (per_prompt is None or used[prompt] < per_prompt):
            used[prompt] += 1
            taken.append(i)
    return taken


def read_scores(path: str, score_field: str) -> tuple[list[ScoredRow], Scores]:
    """The rows of a file of ``rlhf score``, and the score of each prompt and response.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a row lacks prompt, response or score, or one of them is of the wrong kind.
    """
    rows, _ = scored_rows([path], score_field=score_field, keep_cut=True)
    return rows, {(_text(row.prompt), row.response): row.score for row in rows}


def gap(query: Query, scores: Scores, path: str) -> float:
    """By how much the first response scores above the second.

    Raises:
        ValueError: one of them has no score.
    """
    found = []
    for response in (query.first, query.second):
        if (_text(query.prompt), response) not in scores:
            raise ValueError(f"{query.where}: {path} has no score of the response {response[:80]!r}")
        found.append(scores[_text(query.prompt), response])
    return found[0] - found[1]


def _query(row: Row) -> Query:
    sides = response_fields(row) or (PAIR if row.values.get(PAIR[0]) is not None else None)
    if sides is None:
        known = ", ".join(" and ".join(names) for names in (*RESPONSES, PAIR))
        has = ", ".join(map(repr, row.values))
        raise ValueError(f"{row.where}: no two responses, in fields {known}; the row has {has}")
    pair = preference_row(row, chosen_field=sides[0], rejected_field=sides[1])
    return _ordered(pair.prompt, pair.chosen, pair.rejected, pair.columns, row.where)


def _ordered(prompt: Prompt, one: str, other: str, columns: dict[str, Any], where: str) -> Query:
    first, second = sorted((one, other))
    return Query(prompt=prompt, first=first, second=second, columns=columns, where=where)


def _text(prompt: Prompt) -> str:
    return json.dumps(prompt, sort_keys=True, ensure_ascii=False)
