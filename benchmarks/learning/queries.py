"""Active queries on a known truth: how many labels each acquisition needs for the accuracy of random pairs.

A response is a vector of features, and its true reward a random linear function of them; people answer as
Bradley–Terry says. Reward models are linear too: each member of the ensemble minimises the pair loss on the
labels so far, every label weighted by an exponential draw of its own, with a Gaussian prior around a random
centre, which makes the members draws from about the posterior. Pairs come from a pool, some at a time,
by the components of ``rlhf query``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.results import mean_and_error
from rlhf.algorithms.acquisitions import Acquisition, Disagreement, InformationGain, Random, Uncertainty
from rlhf.data.queries import Query, first_of
from rlhf.ops.preference_losses import bradley_terry
from rlhf.seeding import generator

ACQUISITIONS: dict[str, Acquisition] = {
    "random": Random(),
    "uncertainty": Uncertainty(),
    "disagreement": Disagreement(),
    "information gain": InformationGain(),
}
FEATURES, MEMBERS = 12, 16
POOL, HELD_OUT = 2000, 4000
"""Pairs."""
SCALES = (1.5, 0.3)
"""Standard deviations of each weight of the truth: two random responses are some 7, or 1.5, nats apart."""
LABELS, ROUND = 400, 10
"""Labels in all, and how many are asked between two fits."""
SHARE = 0.7
"""Of the labels of random pairs, at most, for the same accuracy: the claim."""


def curve(name: str, seed: int, *, scale: float, labels: int = LABELS) -> list[float]:
    """Accuracy on held-out pairs after ROUND, 2·ROUND, … labels, by the ensemble's mean."""
    random = generator(seed, "truth")
    truth = scale * torch.randn(FEATURES, generator=random, dtype=torch.float64)
    pool, held_out = (
        torch.randn(2, pairs, FEATURES, generator=random, dtype=torch.float64).diff(dim=0)[0]
        for pairs in (POOL, HELD_OUT)
    )
    answers = torch.rand(POOL, generator=random, dtype=torch.float64) < torch.sigmoid(pool @ truth)
    weights = torch.empty(MEMBERS, POOL, dtype=torch.float64).exponential_(generator=random)
    centres = torch.randn(MEMBERS, FEATURES, generator=random, dtype=torch.float64)
    queries = [Query(prompt=str(i), first="a", second="b", columns={}, where=str(i)) for i in range(POOL)]
    asked: list[int] = []
    members = centres
    found = []
    while len(asked) < labels:
        values = ACQUISITIONS[name](pool @ members.T)
        left = sorted(set(range(POOL)) - set(asked))
        chosen = first_of(
            [queries[i] for i in left], values[left].tolist(), count=ROUND, per_prompt=None, seed=seed
        )
        asked += [left[i] for i in chosen]
        members = fitted(pool[asked], answers[asked].double(), weights[:, asked], centres, start=members)
        right = (held_out @ members.mean(0) > 0) == (held_out @ truth > 0)
        found.append(float(right.double().mean()))
    return found


def fitted(pairs: Tensor, answers: Tensor, weights: Tensor, centres: Tensor, *, start: Tensor) -> Tensor:
    """(M, F) minimisers of Σ w·loss + ½‖θ − centre‖², by Newton's method.

    Args:
        pairs: (N, F) features of the first response minus those of the second.
        answers: (N,) 1 where the first was preferred.
        weights: (M, N) of each label, by member.
        centres: (M, F) of the prior.
        start: (M, F) where the search begins.
    """

    def loss(theta: Tensor) -> Tensor:
        gaps = theta @ pairs.T
        nats = bradley_terry(gaps, torch.zeros_like(gaps), torch.zeros_like(gaps), answers)
        return (weights * nats).sum(1) + (theta - centres).square().sum(1) / 2

    theta = start
    for _ in range(200):
        p = torch.sigmoid(theta @ pairs.T)  # (M, N)
        slope = (weights * (p - answers)) @ pairs + (theta - centres)
        curvature = pairs.T @ ((weights * p * (1 - p))[:, :, None] * pairs)
        curvature = curvature + torch.eye(pairs.shape[1], dtype=torch.float64)
        step = torch.linalg.solve(curvature, slope)
        theta = theta - _shortened(step, theta, loss)
        if step.abs().max() < 1e-9:
            return theta
    raise ValueError("fitted: Newton's method did not settle")


def _shortened(step: Tensor, theta: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The step of each member, halved until its loss is no higher, but for rounding."""
    highest = loss(theta) + 1e-9
    while (too_far := loss(theta - step) > highest).any():
        step = torch.where(too_far[:, None], step / 2, step)
    return step


def labels_for(accuracies: Sequence[float], target: float) -> int:
    """Labels from which on the accuracy is never below ``target``; more than all where its last is."""
    below = [number for number, accuracy in enumerate(accuracies) if accuracy < target]
    return ROUND * (below[-1] + 2 if below else 1)


def measured(seed: int, *, scale: float, labels: int = LABELS) -> list[dict[str, Any]]:
    """Of each acquisition: its accuracies, and the labels that it needs for the last one of random pairs."""
    curves = {name: curve(name, seed, scale=scale, labels=labels) for name in ACQUISITIONS}
    target = curves["random"][-1]
    return [
        {
            "acquisition": name,
            "scale": scale,
            "seed": seed,
            "target": target,
            "labels": labels_for(accuracies, target),
            "share": labels_for(accuracies, target) / labels,
            "accuracies": accuracies,
        }
        for name, accuracies in curves.items()
    ]


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: mean ± standard error over the seeds, a row for each scale and acquisition."""
    rows = [
        [
            "scale",
            "acquisition",
            "labels for the accuracy of random pairs",
            "share",
            "accuracy at 100",
            "at the end",
        ]
    ]
    rows.append(["---"] * len(rows[0]))
    for scale, name in product(SCALES, ACQUISITIONS):
        own = [line for line in lines if (line["scale"], line["acquisition"]) == (scale, name)]
        labels, share = ([line[key] for line in own] for key in ("labels", "share"))
        early = [line["accuracies"][100 // ROUND - 1] for line in own]
        last = [line["accuracies"][-1] for line in own]
        cells = [_shown(labels, 0), _shown(share, 3), _shown(early, 4), _shown(last, 4)]
        rows.append([f"{scale:g}", name, *cells])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _shown(numbers: Sequence[float], digits: int) -> str:
    mean, error = mean_and_error(numbers)
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def picture(lines: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Mean accuracy over labels, with standard errors over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(SCALES), figsize=(9.6, 3.8), constrained_layout=True)
    for axis, scale in zip(axes, SCALES, strict=True):
        for name in ACQUISITIONS:
            own = [line for line in lines if (line["scale"], line["acquisition"]) == (scale, name)]
            columns = zip(*(line["accuracies"] for line in own), strict=True)
            means, errors = zip(*map(mean_and_error, columns), strict=True)
            labels = [ROUND * (number + 1) for number in range(len(means))]
            axis.errorbar(labels, means, yerr=errors, label=name, linewidth=1)
        axis.set_title(f"weights of the truth: {scale:g}")
        axis.set_xlabel("labels")
        axis.set_ylabel("accuracy on held-out pairs")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
