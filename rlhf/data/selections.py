"""Which scored responses are learnt, and as what: the step between ``rlhf score`` and training (D55).

Each selection takes the rows of the whole pool and gives the rows of a training file. Equal inputs give equal
outputs; what it leaves out it counts, by reason.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any

from rlhf.data.prefixes import prefixed
from rlhf.data.scored import Account, ScoredRow

Line = dict[str, Any]


@dataclass(kw_only=True, slots=True)
class Selection(ABC):
    """From scored responses to rows that are learnt."""

    @abstractmethod
    def __call__(self, rows: Sequence[ScoredRow], account: Account) -> list[Line]:
        """The rows to be written, counted in ``account`` together with those that are not.

        Args:
            rows: all scored responses, at least one.
            account: of these rows.

        Raises:
            ValueError: the scores cannot be divided as wanted.
        """


# Demonstrations, for rlhf sft


@dataclass(kw_only=True, slots=True)
class Best(Selection):
    """The best response to each prompt, the first where several are: rejection sampling, expert iteration."""

    def __call__(self, rows: Sequence[ScoredRow], account: Account) -> list[Line]:
        """One row a prompt, in the order in which the prompts come first."""
        best = [max(group, key=_score) for group in _by_prompt(rows)]
        account.left_out["not the best of their prompt"] += len(rows) - len(best)
        return _written([_demonstration(row) for row in best], account)


@dataclass(kw_only=True, slots=True)
class Top(Selection):
    """The best share of all responses, whatever their prompts (FeedME; filtering by a discriminator)."""

    fraction: float = 0.5
    """Share of the responses that is kept, rounded to whole ones, at least one; of equal scores the first."""

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"Top.fraction must be above 0 and at most 1, got {self.fraction}")

    def __call__(self, rows: Sequence[ScoredRow], account: Account) -> list[Line]:
        """Rows in their order."""
        count = max(round(self.fraction * len(rows)), 1)
        falling = sorted(range(len(rows)), key=lambda i: -rows[i].score)  # stable: the first of equals
        account.left_out[f"not of the best {count}"] += len(rows) - count
        return _written([_demonstration(rows[i]) for i in sorted(falling[:count])], account)


@dataclass(kw_only=True, slots=True)
class Above(Selection):
    """The responses with at least some score."""

    threshold: float = 0.0
    """The least score that is kept."""

    def __post_init__(self) -> None:
        _expect_finite("Above.threshold", self.threshold)

    def __call__(self, rows: Sequence[ScoredRow], account: Account) -> list[Line]:
        """Rows in their order."""
        kept = [row for row in rows if row.score >= self.threshold]
        account.left_out[f"below {self.threshold:g}"] += len(rows) - len(kept)
        return _written([_demonstration(row) for row in kept], account)


@dataclass(kw_only=True, slots=True)
class Label(Selection):
    """All responses, the good and the bad behind prefixes that say so (binary reward conditioning)."""

    threshold: float | None = None
    """The least score of a good response; null takes the median of all."""
    good: str = "<good> "
    """Stands before the prompts of good responses; to be sampled with."""
    bad: str = "<bad> "
    """Stands before the prompts of the others."""

    def __post_init__(self) -> None:
        _expect_finite("Label.threshold", self.threshold)
        if self.good == self.bad:
            raise ValueError(f"Label.good and Label.bad must differ, both are {self.good!r}")

    def __call__(self, rows: Sequence[ScoredRow], account: Account) -> list[Line]:
        """Rows in their order."""
        good = _good(rows, self.threshold)
        marks = [self.good if one else self.bad for one in good]
        return _conditioned(rows, marks, [self.good, self.bad], account)


@dataclass(kw_only=True, slots=True)
class Quantiles(Selection):
    """All responses behind prefixes that say in which quantile of all scores theirs lies (Quark).

    Lu et al. 2022. Equal scores go into one quantile, that of the last of them, so that the best response is
    always in the best quantile; others may stay empty.
    """

    count: int = 5
    """Quantiles; number 1 has the lowest scores, the last the highest."""
    prefix: str = "<quantile_{}> "
    """Stands before each prompt, the quantile's number in place of {}; the last is to be sampled with."""

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ValueError(f"Quantiles.count must be at least 2, got {self.count}")
        if self.prefix.count("{}") != 1:
            raise ValueError(f"Quantiles.prefix must hold {{}} once, for the number, got {self.prefix!r}")

    def __call__(self, rows: Sequence[ScoredRow], account: Account) -> list[Line]:
        """Rows in their order."""
        if len(rows) < self.count:
            raise ValueError(
                f"Quantiles.count is {self.count}, but there are {len(rows)} scored responses only"
            )
        last = {row.score: rank for rank, row in enumerate(sorted(rows, key=_score))}  # of equals the last
        numbers = [last[row.score] * self.count // len(rows) for row in rows]
        names = [self.prefix.replace("{}", str(number)) for number in range(1, self.count + 1)]
        return _conditioned(rows, [names[number] for number in numbers], names, account)


# Feedback, for rlhf preference and rlhf reward


@dataclass(kw_only=True, slots=True)
class Pairs(Selection):
    """Of each prompt the best response against the worst, the first where several are."""

    margin: float = 0.0
    """Least difference of the scores; of equal scores there is never a pair."""

    def __post_init__(self) -> None:
        _expect_margin(self.margin, "Pairs")

    def __call__(self, rows: Sequence[ScoredRow], account: Account) -> list[Line]:
        """At most one row a prompt."""
        ends = [(max(group, key=_score), min(group, key=_score)) for group in _by_prompt(rows)]
        return _paired(rows, ends, self.margin, account)


@dataclass(kw_only=True, slots=True)
class AllPairs(Selection):
    """Of each prompt every two responses whose scores differ."""

    margin: float = 0.0
    """Least difference of the scores; of equal scores there is never a pair."""

    def __post_init__(self) -> None:
        _expect_margin(self.margin, "AllPairs")

    def __call__(self, rows: Sequence[ScoredRow], account: Account) -> list[Line]:
        """Rows in the order of their prompts."""
        twos = [two for group in _by_prompt(rows) for two in combinations(group, 2)]
        ranked = [(one, other) if one.score >= other.score else (other, one) for one, other in twos]
        return _paired(rows, ranked, self.margin, account)


@dataclass(kw_only=True, slots=True)
class Labelled(Selection):
    """All responses, called good or bad (rows of KTO)."""

    threshold: float | None = None
    """The least score of a good response; null takes the median of all."""

    def __post_init__(self) -> None:
        _expect_finite("Labelled.threshold", self.threshold)

    def __call__(self, rows: Sequence[ScoredRow], account: Account) -> list[Line]:
        """Rows in their order."""
        lines = []
        for row, good in zip(rows, _good(rows, self.threshold), strict=True):
            lines.append(_demonstration(row) | {"label": good})
            account.written["good" if good else "bad"] += 1
        return lines


def _score(row: ScoredRow) -> float:
    return row.score


def _by_prompt(rows: Iterable[ScoredRow]) -> list[list[ScoredRow]]:
    """The responses to each prompt, prompts in the order in which they come first."""
    groups: dict[str, list[ScoredRow]] = {}
    for row in rows:
        groups.setdefault(json.dumps(row.prompt, sort_keys=True), []).append(row)
    return list(groups.values())


def _demonstration(row: ScoredRow) -> Line:
    return {"prompt": row.prompt, "response": row.response, "score": row.score}


def _written(lines: list[Line], account: Account) -> list[Line]:
    account.written[""] += len(lines)
    return lines


def _conditioned(
    rows: Sequence[ScoredRow], prefixes: Sequence[str], listed: Sequence[str], account: Account
) -> list[Line]:
    """The rows behind their prefixes, counted in the order in which those are listed."""
    account.written.update({repr(prefix): 0 for prefix in listed})
    lines = []
    for row, prefix in zip(rows, prefixes, strict=True):
        lines.append(_demonstration(row) | {"prompt": prefixed(row.prompt, prefix)})
        account.written[repr(prefix)] += 1
    return lines


def _good(rows: Sequence[ScoredRow], threshold: float | None) -> list[bool]:
    """Which scores reach the threshold, or the median of all.

    Raises:
        ValueError: all do, or none.
    """
    least = median(map(_score, rows)) if threshold is None else threshold
    good = [row.score >= least for row in rows]
    if all(good) or not any(good):
        lowest, highest = min(map(_score, rows)), max(map(_score, rows))
        raise ValueError(
            f"all {len(rows)} scores are {'at least' if good[0] else 'below'} {least:g}: "
            f"selection.threshold must divide them, they go from {lowest:g} to {highest:g}"
        )
    return good


def _paired(
    rows: Sequence[ScoredRow], twos: Iterable[tuple[ScoredRow, ScoredRow]], margin: float, account: Account
) -> list[Line]:
    """A row for each better and worse response that are far enough apart."""
    lines, used = [], set()
    for better, worse in twos:
        apart = better.score - worse.score
        if apart > 0 and apart >= margin and better.response != worse.response:
            used |= {id(better), id(worse)}
            scores = {"chosen_score": better.score, "rejected_score": worse.score}
            texts = {"chosen": better.response, "rejected": worse.response}
            lines.append({"prompt": better.prompt} | texts | scores)
    account.left_out["in no pair"] += len(rows) - len(used)
    return _written(lines, account)


def _expect_finite(name: str, value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")


def _expect_margin(margin: float, name: str) -> None:
    if not 0 <= margin < math.inf:
        raise ValueError(f"{name}.margin must be finite and not negative, got {margin}")
