"""What a policy's responses are worth: score, KL to the reference, an independent judge, diversity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlhf.ops.best_of_n import best_of_n_kl_bound


@dataclass(kw_only=True, slots=True)
class Response:
    """One sampled response and everything measured of it."""

    prompt: str
    text: str
    score: float
    """What the reward says of it."""
    judge: float | None
    """What the judge says, which nothing was trained on; None without one."""
    kl: float
    """Σₜ k1 to the reference, nats."""
    exact_kl: float
    """Σₜ of the KL over the whole vocabulary, nats."""
    ref_logprob: float
    """Σₜ log π_ref."""
    tokens: int
    """Response tokens, the end token included."""
    ended: bool
    """It ended by itself."""


@dataclass(kw_only=True, slots=True)
class Summary:
    """One row of the table: means over responses, standard errors where they matter."""

    policy: str
    responses: int
    score: float
    score_error: float
    score_std: float
    kl: float
    kl_error: float | None
    kl_exact: float | None
    judge: float | None
    judge_error: float | None
    distinct_2: float | None
    length: float
    ended: float
    perplexity: float


def summarise(policy: str, responses: Sequence[Response]) -> Summary:
    """Means over ``responses``; perplexity is of all their tokens under the reference.

    Raises:
        ValueError: fewer than two responses, which have no standard error.
    """
    if len(responses) < 2:
        raise ValueError(
            f"{policy}: at least 2 responses are needed for a standard error, got {len(responses)}"
        )
    tokens = sum(response.tokens for response in responses)
    judged = [response.judge for response in responses if response.judge is not None]
    return Summary(
        policy=policy,
        responses=len(responses),
        score=mean([response.score for response in responses]),
        score_error=standard_error([response.score for response in responses]),
        score_std=std([response.score for response in responses]),
        kl=mean([response.kl for response in responses]),
        kl_error=standard_error([response.kl for response in responses]),
        kl_exact=mean([response.exact_kl for response in responses]),
        judge=mean(judged) if judged else None,
        judge_error=standard_error(judged) if judged else None,
        distinct_2=distinct([response.text for response in responses], 2),
        length=tokens / len(responses),
        ended=mean([float(response.ended) for response in responses]),
        perplexity=math.exp(-sum(response.ref_logprob for response in responses) / tokens),
    )


def summarise_best(policy: str, responses: Sequence[Response], n: int) -> Summary:
    """The same of responses that were each the best of ``n`` from the reference.

    Their KL is the bound log n − (n−1)/n (numerics D54): they were not drawn token by token.
    """
    summary = summarise(policy, responses)
    summary.kl, summary.kl_error, summary.kl_exact = best_of_n_kl_bound(n), None, None
    return summary


def best_of(responses: Sequence[Response], n: int, samples: int | None = None) -> list[Response]:
    """The highest score of the first ``n`` of each run of ``samples`` responses; ties go to the first.

    Args:
        responses: those to one prompt in succession.
        n: how many of them are considered.
        samples: how many there are; ``n`` when None.

    Raises:
        ValueError: the responses cannot be shared out in such runs, or the runs are shorter than ``n``.
    """
    samples = n if samples is None else samples
    if not 1 <= n <= samples or len(responses) % samples:
        raise ValueError(
            f"{len(responses)} responses cannot be shared out in groups of {samples} with a best of {n}"
        )
    groups = [responses[first : first + n] for first in range(0, len(responses), samples)]
    return [max(group, key=lambda response: response.score) for group in groups]


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Distinct-n (Li et al. 2016): different word n-grams of all texts over their number; None if none."""
    grams = [
        tuple(words[start : start + n])
        for words in (text.split() for text in texts)
        for start in range(len(words) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else None


def mean(values: Sequence[float]) -> float:
    """Their mean, accumulated in float64."""
    return float(torch.tensor(values, dtype=torch.float64).mean())


def std(values: Sequence[float]) -> float:
    """Their sample standard deviation."""
    return float(torch.tensor(values, dtype=torch.float64).std())


def standard_error(values: Sequence[float]) -> float:
    """Standard error of their mean."""
    return std(values) / math.sqrt(len(values))
