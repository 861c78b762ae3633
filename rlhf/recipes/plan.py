"""A recipe: commands one after the other, once or in rounds, each with what those before it left."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlhf.recipes.references import Scope, expect_known

OF_THE_RECIPE = re.compile(r"[+~]*(?:(?:name|resume)(?:=|$)|hydra[./])")
"""Overrides that a stage gets from its recipe alone."""


@dataclass(kw_only=True, slots=True)
class Stage:
    """A command of a recipe."""

    command: str = "???"
    """What is run: sft, generate, select, …"""
    overrides: list[str] = field(default_factory=list)
    """What is typed after it, with references in braces (docs/recipes.md); name and resume are added."""


@dataclass(kw_only=True, slots=True)
class Recipe:
    """``rlhf recipe``: commands one after the other, once or in rounds, from one file."""

    name: str = "???"
    """The recipe's folder is runs/NAME, with the run folder of each stage inside."""
    seed: int = 0
    """{seed} is 1000 times this plus the round, so that no two rounds draw alike."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What the stages have in common: {settings.KEY}."""
    start: dict[str, str] = field(default_factory=dict)
    """What {previous.STAGE} is in the first round, for stages of each_round; everywhere {start.STAGE}."""
    first: dict[str, Stage] = field(default_factory=dict)
    """Stages that run once, before the rounds."""
    rounds: int = 1
    """How often each_round is run."""
    each_round: dict[str, Stage] = field(default_factory=dict)
    """Stages of a round."""
    last: dict[str, Stage] = field(default_factory=dict)
    """Stages that run once, after the rounds."""
    extra: dict[str, list[str]] = field(default_factory=dict)
    """Further overrides of a stage, after its own: '+extra.STAGE=["epochs=2","optimizer.lr=1e-5"]'."""
    launcher: str | None = None
    """Starts the stages that train, as "deepspeed --no_local_rank --num_gpus 8 --module rlhf" does; null runs
    each as one process."""
    dry_run: bool = False
    """Print the commands, each as it could be typed, and run none."""

    def __post_init__(self) -> None:
        """Refuse counts that are not positive, and names that name nothing or two things."""
        if self.rounds < 1:
            raise ValueError(f"Recipe.rounds must be positive, got {self.rounds}")
        if not self.names:
            raise ValueError("Recipe must have a stage in first, each_round or last, got none")
        for name in self.names:
            if not name.isidentifier():
                raise ValueError(f"a stage must have a name of letters, digits and _, got {name!r}")
            if self.names.count(name) > 1:
                raise ValueError(f"a stage must have a name of its own, got {name} twice")
        for key in self.start:
            expect_known(key, self.each_round, f"start.{key}", "stage in each_round")
        for key in self.extra:
            expect_known(key, self.names, f"extra.{key}", "stage")

    @property
    def names(self) -> list[str]:
        """Of all stages."""
        return [*self.first, *self.each_round, *self.last]


@dataclass(kw_only=True, slots=True)
class Planned:
    """A stage of one round, every reference replaced."""

    label: str
    """``round_2/sft``, or ``evaluate`` outside the rounds."""
    command: str
    name: str
    """What the command is given as its name; its folder is runs/NAME."""
    overrides: list[str]

    @property
    def folder(self) -> Path:
        """The run folder of the stage."""
        return Path("runs") / self.name

    @property
    def arguments(self) -> list[str]:
        """What is typed after the command."""
        return [f"name={self.name}", *self.overrides]


def plan(recipe: Recipe) -> list[Planned]:
    """Every stage in the order in which it is run.

    Raises:
        ValueError: a reference to nothing, or to a stage that comes later; the line names the stage.
    """
    known: dict[str, str] = {}
    scope = Scope(
        settings=recipe.settings,
        start=recipe.start,
        seed=recipe.seed,
        names=recipe.names,
        first=known,
        stages=known,
        rounds={name: [] for name in recipe.each_round},
    )
    planned = list(_stages(recipe, recipe.first, "", scope))
    previous: Mapping[str, str] = recipe.start
    for number in range(1, recipe.rounds + 1):
        scope = replace(scope, number=number, stages=dict(known), previous=previous)
        planned += _stages(recipe, recipe.each_round, f"round_{number}/", scope)
        previous = {name: scope.stages[name] for name in recipe.each_round}
    scope = replace(scope, previous=None)
    return planned + list(_stages(recipe, recipe.last, "", scope))


def _stages(recipe: Recipe, stages: Mapping[str, Stage], place: str, scope: Scope) -> Iterator[Planned]:
    """The stages of one section; what each leaves is known to the next."""
    for name, stage in stages.items():
        where = f"stage {place}{name}"
        overrides = [scope.filled(text, where) for text in (*stage.overrides, *recipe.extra.get(name, []))]
        for override in overrides:
            if OF_THE_RECIPE.match(override):
                raise ValueError(f"{where} must not set {override}: that is for the recipe to give")
        planned = Planned(
            label=place + name,
            command=stage.command,
            name=f"{recipe.name}/{place}{name}",
            overrides=overrides,
        )
        yield planned
        scope.stages[name] = str(planned.folder)
        if name in scope.rounds:
            scope.rounds[name].append(str(planned.folder))
