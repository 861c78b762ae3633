"""Table and picture of the runs: means over seeds with their standard errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import mean_and_error

COLUMNS = {
    "reward/score": "score",
    "actor/kl_reference": "KL, nats",
    "rollout/length": "length",
    "rollout/ended_fraction": "ended",
    "seconds_per_rollout": "s/rollout",
}


def markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """A table a task; the first row is the policy that all start from, at their first rollout."""
    parts = []
    for task in dict.fromkeys(line["task"] for line in lines):
        own = [line for line in lines if line["task"] == task]
        head = ["algorithm", "steps", *COLUMNS.values()]
        rows = [["start", "0", *_cells([line["start"] for line in own])]]
        for label in sorted(dict.fromkeys(line["label"] for line in own)):
            chosen = [line for line in own if line["label"] == label]
            rows.append([f"`{label}`", str(int(chosen[0]["steps"])), *_cells(chosen)])
        table = [head, ["---"] * len(head), *rows]
        seeds = len({line["seed"] for line in own})
        title = (
            f"{task}: {own[0]['rollouts']} rollouts of 128 responses, {seeds} seeds, mean ± standard error"
        )
        parts.append(f"**{title}**\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in table))
    return "\n".join(parts)


def curves(lines: Sequence[Mapping[str, Any]], picture: Path) -> None:
    """Score and KL of every rollout of PPO with 1, 2 and 4 passes, a line a seed, a row a task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = {"ppo epochs=1": "tab:blue", "ppo epochs=2": "tab:orange", "ppo": "tab:green"}
    names = list(dict.fromkeys(line["task"] for line in lines))
    figure, axes = pyplot.subplots(
        len(names), 2, figsize=(9, 3.2 * len(names)), squeeze=False, constrained_layout=True
    )
    for row, task in zip(axes, names, strict=True):
        for axis, (name, unit) in zip(
            row, {"reward/score": "score", "actor/kl_reference": "KL, nats"}.items(), strict=True
        ):
            for label, colour in labels.items():
                chosen = [line for line in lines if (line["task"], line["label"]) == (task, label)]
                for number, line in enumerate(chosen):
                    legend = None if number else ("ppo epochs=4" if label == "ppo" else label)
                    axis.plot(line["curve"][name], color=colour, linewidth=1, label=legend)
            axis.set_title(f"{task}: {unit}", fontsize=9)
            axis.set_xlabel("rollout")
    axes[0, 0].legend(fontsize=8)
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)


def _cells(chosen: Sequence[Mapping[str, float]]) -> list[str]:
    return [_mean([line[name] for line in chosen if name in line]) for name in COLUMNS]


def _mean(numbers: Sequence[float]) -> str:
    """Mean ± standard error over the seeds; – where nothing was measured."""
    if not numbers:
        return "–"
    mean, error = mean_and_error(numbers)
    return f"{mean:.2f}" if len(numbers) == 1 else f"{mean:.2f} ± {error:.2f}"
