"""Pictures of a run, drawn from its ``metrics.jsonl``, and of policies side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.evaluation.best_of_n import BestOfN
from rlhf.evaluation.policies import Response, Summary

PANELS = {
    "score": ["reward/score", "eval/reward/score"],
    "accuracy": ["reward/accuracy", "eval/reward/accuracy"],
    "rewards of chosen and rejected": ["reward/chosen", "reward/rejected"],
    "log-probs of chosen and rejected": ["actor/chosen_logprob", "actor/rejected_logprob"],
    "KL to the reference, nats per response": ["actor/kl_reference", "actor/kl_reference_exact"],
    "KL to the teacher, nats per token": ["actor/kl_teacher_forward", "actor/kl_teacher_reverse"],
    "response length, tokens": ["rollout/length"],
    "share that ended by itself": ["rollout/ended_fraction"],
    "clip fraction": ["actor/clip_fraction"],
    "explained variance": ["critic/explained_variance"],
    "entropy, nats per token": ["actor/entropy"],
    "loss": ["loss", "eval/loss"],
    "critic loss": ["critic/loss"],
    "gradient norm": ["actor/grad_norm", "critic/grad_norm", "reward/grad_norm"],
    "learning rate": ["actor/lr", "critic/lr", "reward/lr"],
}
"""What a run's picture shows; a panel none of whose metrics were logged is left out."""


def curves(metrics: Path, picture: Path, panels: Mapping[str, Sequence[str]] = PANELS) -> None:
    """One panel a title, with the named metrics over steps; held-out values (``eval/…``) as dots."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    logged = {name for row in rows for name, value in row.items() if value is not None}
    kept = {title: [n for n in names if n in logged] for title, names in panels.items()}
    kept = {title: names for title, names in kept.items() if names}
    plt = pyplot()
    columns = min(3, len(kept))
    height = math.ceil(len(kept) / columns)
    figure, axes = plt.subplots(
        height, columns, figsize=(4.2 * columns, 2.9 * height), squeeze=False, constrained_layout=True
    )
    for axis in axes.flat[len(kept) :]:
        axis.remove()
    for axis, (title, names) in zip(axes.flat, kept.items(), strict=False):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            axis.plot(
                *zip(*points, strict=True), "o" if name.startswith("eval/") else "-", markersize=4, label=name
            )
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend(fontsize=7)
    save(figure, picture)


def comparison(
    picture: Path,
    summaries: Sequence[Summary],
    responses: Mapping[str, Sequence[Response]],
    curve: Sequence[BestOfN] = (),
) -> None:
    """Left, the scores of every policy's responses; right, mean score against KL to the reference.

    The line on the right is the best of n responses of the reference, for every n of ``curve``.
    """
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), constrained_layout=True)
    scores = [response.score for rows in responses.values() for response in rows]
    shared = {"bins": 40, "range": (min(scores), max(scores)), "density": True, "alpha": 0.5}
    for name, rows in responses.items():
        left.hist([response.score for response in rows], label=name, **shared)
    left.set_xlabel("score")
    left.set_ylabel("density")
    left.legend()
    for one in summaries:
        right.errorbar(one.kl, one.score, xerr=one.kl_error, yerr=one.score_error, fmt="o", capsize=3)
        right.annotate(one.policy, (one.kl, one.score), xytext=(6, -10), textcoords="offset points")
    if curve:
        bounds, means = [one.kl_bound for one in curve], [one.score for one in curve]
        right.plot(bounds, means, "-", color="grey", linewidth=1, label=f"best of 1 … {len(curve)}")
        right.legend()
    right.set_xlabel("KL to the reference, nats per response (best-of-n: bound)")
    right.set_ylabel("mean score")
    right.margins(x=0.15)
    right.grid(alpha=0.3)
    save(figure, picture)


def pyplot() -> Any:
    """Matplotlib's, drawing into files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, picture: Path) -> None:
    """Write the figure and let it go."""
    figure.savefig(picture, dpi=110)
    pyplot().close(figure)
