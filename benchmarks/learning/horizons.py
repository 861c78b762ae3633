"""Behaviour cloning and DAgger on the road, for horizons up to T, with the trainer of ``rlhf distill``."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.learning.road import (
    ACTIONS,
    PLACES,
    Road,
    expert,
    irreducible_error,
    learner,
    probabilities,
)
from benchmarks.results import mean_and_error
from rlhf.algorithms.divergences import ForwardKL
from rlhf.algorithms.mixtures import Constant, Linear, Mixture
from rlhf.data.fitting import Report
from rlhf.data.loaded import PromptSet
from rlhf.distributed.engine_config import Plain
from rlhf.distributed.runtime import Runtime
from rlhf.rollout.decoding import Sampling
from rlhf.rollout.sampler import Sampler
from rlhf.rollout.texts import RolloutTexts
from rlhf.trainers import schedules
from rlhf.trainers.collection import Prompts, Sizes
from rlhf.trainers.distillation import DistillationTrainer, Pair
from rlhf.trainers.optimizers import AdamW

METHODS: dict[str, Mixture] = {"behaviour cloning": Constant(beta=1.0), "DAgger": Linear(rounds=1)}
"""Who writes what is learnt from: the expert always, or in the first round alone."""
ROWS = 32
"""Trajectories of a round, and of an optimiser step."""


class Numbers:
    """Writes tokens as the numbers that they are."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """Numbers with blanks between them."""
        return " ".join(map(str, token_ids))


def trainer(road: Road, mixture: Mixture, *, horizon: int, rounds: int, seed: int) -> DistillationTrainer:
    """Rounds of ROWS trajectories of ``horizon`` steps, all kept, and ten optimiser steps after each."""
    engine, student, teacher = Plain(clip=None), learner(road, seed), expert(road)
    rows = PromptSet(
        prompts=[[place] for place in range(PLACES)],
        strings=[str(place) for place in range(PLACES)],
        others=[{}] * PLACES,
        pad_id=ACTIONS + 1,
        report=Report(source="road"),
    )
    return DistillationTrainer(
        models=Pair(
            student=engine.train(student, AdamW(lr=0.2, beta2=0.9, eps=1e-8)(student), "student"),
            teacher=engine.inference(teacher, "teacher"),
            sampling_student=lambda: student,
            sampling_teacher=copy.deepcopy(teacher),
        ),
        divergence=ForwardKL(),
        mixture=mixture,
        temperature=1.0,
        sampler=Sampler(
            decoding=Sampling(max_new_tokens=horizon),
            end_ids=[ACTIONS],  # nobody can say it: every trajectory has ``horizon`` steps
            pad_id=ACTIONS + 1,
        ),
        train=Prompts(rows=rows, texts=RolloutTexts(rows, Numbers())),
        test=None,
        sizes=Sizes(prompts=ROWS, samples=1, micro_batch=ROWS),
        keep_rounds=None,
        steps=10,
        batch_size=ROWS,
        schedule=schedules.Constant(),
        total=rounds,
        seed=seed,
        runtime=Runtime(0, 1, 0, torch.device("cpu")),
        export=lambda folder: None,
    )


def measured(method: str, *, horizon: int, rounds: int, seed: int) -> dict[str, Any]:
    """Train one learner; what it costs, exactly, and how wrong it is on the road and in the ditch."""
    road = Road.drawn(seed)
    run = trainer(road, METHODS[method], horizon=horizon, rounds=rounds, seed=seed)
    while run.done < run.total:
        run.step()
    student = run.models.sampling_student()
    policy = probabilities(student)
    wrong = 1 - policy[road.right, torch.arange(2 * PLACES)]
    return {
        "method": method,
        "horizon": horizon,
        "rounds": rounds,
        "seed": seed,
        "cost": road.cost(policy, horizon),
        "error_on_the_road": float(wrong[: min(PLACES, horizon)].mean()),
        "error_in_the_ditch": float(wrong[PLACES:].mean()),
        "irreducible_error": irreducible_error(),
    }


def slope(costs: Mapping[int, float]) -> float:
    """Least-squares slope of log cost over log T: 1 is linear, 2 quadratic."""
    x, y = ([math.log(v) for v in values] for values in (costs.keys(), costs.values()))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    over = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return over / sum((a - mean_x) ** 2 for a in x)


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: mean cost ± standard error over seeds, a row a horizon, and the slopes below."""
    horizons = sorted({line["horizon"] for line in lines})
    head = ["T", *METHODS, "ratio"]
    rows = [head, ["---"] * len(head)]
    means: dict[str, dict[int, float]] = {method: {} for method in METHODS}
    for horizon in horizons:
        cells = []
        for method in METHODS:
            costs = costs_of(lines, method, horizon)
            means[method][horizon], error = mean_and_error(costs)
            cells.append(f"{means[method][horizon]:.3f} ± {error:.3f}")
        first, second = (means[method][horizon] for method in METHODS)
        rows.append([str(horizon), *cells, f"{first / second:.1f}"])
    rows.append(["slope of log cost", *(f"{slope(means[method]):.2f}" for method in METHODS), ""])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def costs_of(lines: Sequence[Mapping[str, Any]], method: str, horizon: int) -> list[float]:
    """Over the seeds."""
    return [line["cost"] for line in lines if (line["method"], line["horizon"]) == (method, horizon)]


def picture(lines: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Cost over T on logarithmic axes, with standard errors and the two laws."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    horizons = sorted({line["horizon"] for line in lines})
    epsilon = irreducible_error()
    figure, axis = pyplot.subplots(figsize=(5.2, 3.8), constrained_layout=True)
    for method, colour in zip(METHODS, ("tab:red", "tab:blue"), strict=True):
        found = [mean_and_error(costs_of(lines, method, horizon)) for horizon in horizons]
        means, errors = zip(*found, strict=True)
        axis.errorbar(horizons, means, yerr=errors, color=colour, marker="o", markersize=4, label=method)
    quadratic = [epsilon * T * (T - 1) / 2 for T in horizons]
    axis.plot(horizons, quadratic, ":", color="tab:red", linewidth=1, label="ε·T(T − 1)/2")
    axis.plot(
        horizons, [epsilon * (T - 1) for T in horizons], ":", color="tab:blue", linewidth=1, label="ε·(T − 1)"
    )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel("horizon T, steps")
    axis.set_ylabel("expected steps in the ditch")
    axis.legend(fontsize=8)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
