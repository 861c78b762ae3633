"""Rows of judgements: pairs, rankings of several responses, and single labels, checked field by field.

A row is what its fields say: ``responses`` makes a ranking, ``chosen`` and ``rejected`` a pair, ``a`` and
``b`` an answered query, ``label`` a labelled response, or, without a response, a labelled context.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf.data.rows import (
    COMPLETION,
    Prompt,
    checked_prompt,
    checked_response,
    field_of,
    labelled_row,
    preference_row,
)
from rlhf.data.sources import Row
from rlhf.data.verdicts import Verdict, verdict_of


@dataclass(kw_only=True, slots=True)
class Judgement:
    """Two responses to a prompt compared."""

    first: int
    second: int
    """Numbers of the responses among those of the row."""
    label: float = 1.0
    """Probability that the first is better; 1/2 is a tie."""
    margin: float = 0.0
    """By how much its score should exceed the other, units of the score."""


@dataclass(kw_only=True, slots=True)
class ComparisonRow:
    """A prompt, responses to it, and how they compare."""

    prompt: Prompt
    responses: list[str]
    judgements: list[Judgement]
    """Empty where no two responses can be compared."""
    where: str


@dataclass(kw_only=True, slots=True)
class ComparisonFields:
    """Names of the fields that rows of judgements are read from, and the words for labelled contexts."""

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    margin: str = "margin"
    probability: str = "probability"
    responses: str = "responses"
    ranks: str = "ranks"
    response: str = "response"
    label: str = "label"
    label_texts: list[str] = field(default_factory=list)
    as_chat: bool = False


def comparison_rows(rows: Sequence[Row], names: ComparisonFields) -> list[ComparisonRow]:
    """All judgements, labelled responses to one prompt gathered at its first row.

    Raises:
        ValueError: a field is missing, of the wrong type or out of range.
    """
    found: list[ComparisonRow] = []
    groups: dict[str, tuple[ComparisonRow, list[bool]]] = {}
    for row in rows:
        if not _is_labelled_response(row, names):
            found.append(_one(row, names))
            continue
        single = labelled_row(
            row,
            prompt_field=names.prompt,
            response_field=names.response,
            label_field=names.label,
            as_chat=names.as_chat,
        )
        key = repr(single.prompt)
        if key not in groups:
            whole = ComparisonRow(prompt=single.prompt, responses=[], judgements=[], where=row.where)
            groups[key] = (whole, [])
            found.append(whole)
        groups[key][0].responses.append(single.response)
        groups[key][1].append(single.desirable)
    for whole, good in groups.values():
        whole.judgements = _across(good)
    return found


def _is_labelled_response(row: Row, names: ComparisonFields) -> bool:
    if _has(row, names.chosen, names.responses):
        return False
    return _has(row, names.response, COMPLETION, "messages")


def _has(row: Row, *names: str) -> bool:
    """Whether the row has one of the fields; columnar files put nulls in place of absent ones."""
    return any(row.values.get(name) is not None for name in names)


def _across(good: Sequence[bool]) -> list[Judgement]:
    """Every good response against every bad one; equal labels say nothing of which is better."""
    return [
        Judgement(first=i, second=j)
        for i, first in enumerate(good)
        for j, second in enumerate(good)
        if first and not second
    ]


def _one(row: Row, names: ComparisonFields) -> ComparisonRow:
    if _has(row, names.responses):
        return ranking_row(row, names)
    verdict = None if names.label_texts else verdict_of(row, names.chosen)
    if verdict is not None:
        return answered_row(row, verdict, names)
    if _has(row, names.chosen) or not _has(row, names.label):
        return _pair(row, names)
    return context_row(row, names)


def _pair(row: Row, names: ComparisonFields) -> ComparisonRow:
    label = _probability(row.values.get(names.probability), f"{row.where}: field {names.probability!r}")
    return _compared(row, names, (names.chosen, names.rejected), label)


def answered_row(row: Row, verdict: Verdict, names: ComparisonFields) -> ComparisonRow:
    """A query of ``rlhf query`` and what people said; an outcome of null says nothing.

    Raises:
        ValueError: prompt or response are missing, of the wrong type or empty.
    """
    return _compared(row, names, (verdict.better, verdict.worse), verdict.label)


def _compared(
    row: Row, names: ComparisonFields, sides: tuple[str, str], label: float | None
) -> ComparisonRow:
    """Two responses, by their fields, the first better with probability ``label``."""
    pair = preference_row(
        row,
        prompt_field=names.prompt,
        chosen_field=sides[0],
        rejected_field=sides[1],
        margin_field=names.margin,
        as_chat=names.as_chat,
    )
    judgements = [] if label is None else [Judgement(first=0, second=1, label=label, margin=pair.margin)]
    return ComparisonRow(
        prompt=pair.prompt, responses=[pair.chosen, pair.rejected], judgements=judgements, where=row.where
    )


def ranking_row(row: Row, names: ComparisonFields) -> ComparisonRow:
    """Responses with a rank each, 1 for the best; equal ranks are ties, null ones were not ranked.

    Raises:
        ValueError: not as many ranks as responses, fewer than two responses, a rank that is no number.
    """
    given, ranks = field_of(row, names.responses), field_of(row, names.ranks)
    what = f"{row.where}: field {names.responses!r}"
    if not isinstance(given, list) or len(given) < 2:
        raise ValueError(f"{what} must be a list of at least 2 responses, got {given!r:.60}")
    as_chat = names.as_chat or isinstance(given[0], list)
    prompt = checked_prompt(
        field_of(row, names.prompt), f"{row.where}: field {names.prompt!r}", as_chat=as_chat
    )
    responses = [checked_response(one, prompt, f"{what}, response {k}") for k, one in enumerate(given)]
    judgements = _orders(_ranks(ranks, len(given), f"{row.where}: field {names.ranks!r}"))
    return ComparisonRow(prompt=prompt, responses=responses, judgements=judgements, where=row.where)


def _ranks(given: Any, count: int, what: str) -> list[float | None]:
    if not isinstance(given, list) or len(given) != count:
        size = len(given) if isinstance(given, list) else repr(given)
        raise ValueError(f"{what} must be a list of {count} ranks, one a response, got {size}")
    for rank in given:
        number = isinstance(rank, int | float) and not isinstance(rank, bool)
        if rank is not None and not (number and math.isfinite(rank)):
            raise ValueError(f"{what} holds {rank!r}, expected numbers, 1 for the best, or null for unranked")
    return given


def _orders(ranks: Sequence[float | None]) -> list[Judgement]:
    """A judgement for each two ranked responses, the better one first."""
    ranked = [(k, rank) for k, rank in enumerate(ranks) if rank is not None]
    found = []
    for place, (i, first) in enumerate(ranked):
        for j, second in ranked[place + 1 :]:
            if first == second:
                found.append(Judgement(first=i, second=j, label=0.5))
            else:
                better, worse = (i, j) if first < second else (j, i)
                found.append(Judgement(first=better, second=worse))
    return found


def context_row(row: Row, names: ComparisonFields) -> ComparisonRow:
    """A context with a true or false label: the words for the right label win against the other's.

    Raises:
        ValueError: there are no words, or the label is neither true nor false.
    """
    label = field_of(row, names.label)
    if label not in (True, False) or isinstance(label, float):
        raise ValueError(f"{row.where}: field {names.label!r} is {label!r}, expected true or false")
    if not names.label_texts:
        raise ValueError(
            f"{row.where}: a label without a response needs words to compare: "
            "data.label_texts=[words if true, words if false]"
        )
    prompt = checked_prompt(
        field_of(row, names.prompt), f"{row.where}: field {names.prompt!r}", as_chat=names.as_chat
    )
    words = list(names.label_texts) if label else list(reversed(names.label_texts))
    return ComparisonRow(
        prompt=prompt, responses=words, judgements=[Judgement(first=0, second=1)], where=row.where
    )


def _probability(value: Any, what: str) -> float:
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{what} is {value!r}, expected a probability from 0 to 1")
    return float(value)


def without_ties(judgements: Iterable[Judgement]) -> list[Judgement]:
    """Those that name a better response."""
    return [one for one in judgements if one.label != 0.5]
