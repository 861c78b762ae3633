"""Every outcome of a small model is drawn as often as the policy says, whatever cuts its distribution."""

import math
from collections import Counter
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch

from rlhf.batch import PromptBatch
from rlhf.models.actor import Actor
from rlhf.rollout.decoding import Decoding, Sampling, Truncated
from rlhf.rollout.sampler import Sampler

N, V, T, END = 20_000, 5, 3, 1
PROMPT = [2, 3]
DECODINGS: list[tuple[type[Decoding], dict[str, Any]]] = [
    (Sampling, {"temperature": 1.0}),
    (Sampling, {"temperature": 2.5}),
    (Truncated, {"temperature": 2.0, "top_k": 3}),
    (Truncated, {"temperature": 2.0, "top_p": 0.7}),
    (Truncated, {"temperature": 2.0, "min_p": 0.1}),
    (Truncated, {"temperature": 2.0, "top_k": 4, "top_p": 0.9, "min_p": 0.05}),
]


def law(
    logits: torch.Tensor, *, temperature: float, top_k: int | None, top_p: float, min_p: float
) -> torch.Tensor:
    """(V,) float64, by the definitions of top-k, top-p and min-p; no two logits are equal here."""
    p = (logits.double() / temperature).softmax(0)
    order = p.argsort(descending=True)[:top_k]
    share = p[order] / p[order].sum()
    nucleus = [token for n, token in enumerate(order.tolist()) if share[:n].sum() < top_p]
    final = torch.zeros_like(p)
    for token in nucleus:
        if p[token] >= min_p * p.max():
            final[token] = p[token]
    return final / final.sum()


def outcomes(actor: Actor, cut: dict[str, Any]) -> dict[tuple[int, ...], float]:
    """Each response with its probability."""
    exact: dict[tuple[int, ...], float] = {}
    for outcome in product(range(V), repeat=T):
        row = torch.tensor([[*PROMPT, *outcome]])
        logits = actor.logits(row, torch.ones_like(row, dtype=torch.bool), 2)[0].detach()
        length = outcome.index(END) + 1 if END in outcome else T
        steps = [float(law(logits[t], **cut)[outcome[t]]) for t in range(length)]
        exact[outcome[:length]] = math.prod(steps)
    return exact


def chance(found: list[float], expected: list[float]) -> float:
    """Of a χ² as large as this; rare outcomes count as one."""
    many = [(f, e) for f, e in zip(found, expected, strict=True) if e >= 5]
    rest = (sum(found) - sum(f for f, _ in many), sum(expected) - sum(e for _, e in many))
    cells = torch.tensor([*many, *([rest] if rest[1] >= 5 else [])], dtype=torch.float64)
    assert len(cells) > 4
    statistic = ((cells[:, 0] - cells[:, 1]) ** 2 / cells[:, 1]).sum()
    return float(torch.special.gammaincc(torch.tensor((len(cells) - 1) / 2), statistic / 2))


@pytest.mark.parametrize(("decoding", "options"), DECODINGS)
def test_outcomes_pass_a_chi_square_test(
    build: Callable[..., Actor],
    kind: str,
    prompts: Callable[..., PromptBatch],
    decoding: type[Decoding],
    options: dict[str, Any],
) -> None:
    actor = build(kind, vocabulary=V)
    exact = outcomes(actor, {"top_k": None, "top_p": 1.0, "min_p": 0.0} | options)
    assert sum(exact.values()) == pytest.approx(1.0)
    noise = torch.rand(N, T, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    many = prompts(PROMPT).rows(torch.zeros(N, dtype=torch.int64))
    ours = Sampler(decoding=decoding(max_new_tokens=T, **options), end_ids=(END,), pad_id=999)
    rollout = ours.sample(actor, many, noise)
    pairs = zip(rollout.responses.tolist(), rollout.lengths.tolist(), strict=True)
    drawn = [tuple(tokens[:length]) for tokens, length in pairs]
    counts = Counter(drawn)
    assert all(exact[outcome] > 0.0 for outcome in counts)
    assert chance([counts[outcome] for outcome in exact], [N * p for p in exact.values()]) > 0.001
    wanted = torch.tensor([math.log(exact[outcome]) for outcome in drawn])
    torch.testing.assert_close(rollout.sampler_logprobs.sum(1), wanted, rtol=0, atol=1e-5)
