"""The comparison of methods: every command composes, and the table says what was measured."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from benchmarks.methods.runs import LOSSES, RECIPES, evaluation, methods, pairs, shared
from benchmarks.methods.table import frontier, markdown
from rlhf import config
from rlhf.algorithms.preference_losses import PreferenceLoss
from rlhf.cli.composition import compose
from rlhf.recipes.plan import plan

WORDS = [*shared(1), *(method.words for method in methods(1)), evaluation(1, methods(1))]


def schema_of(name: str) -> Any:
    return importlib.import_module(f"rlhf.cli.{name}").COMMAND.schema


@pytest.mark.parametrize("words", WORDS, ids=lambda words: f"{words[0]} {words[1]}")
def test_every_command_composes(words: list[str]) -> None:
    name, *overrides = words
    schema = schema_of(name)
    config.register({name: schema})
    built: Any = config.build(compose(name, overrides), schema)
    assert built.seed == 1 if hasattr(built, "seed") else name == "select"


def test_every_loss_is_compared_from_the_same_pairs() -> None:
    losses = config.GROUPS["loss"].items()
    compared = {words[0].removeprefix("loss=") for words in LOSSES.values()}
    assert compared == {name for name, loss in losses if issubclass(loss, PreferenceLoss)}
    offline = [method.words for method in methods(3) if method.name in LOSSES]
    assert all(f"data.path={pairs(3)}" in words for words in offline)
    assert len({method.folder for method in methods(3)}) == len(methods(3))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_last_policy_is_where_it_is_looked_for(name: str) -> None:
    method = next(method for method in methods(0) if method.name == name)
    schema = schema_of("recipe")
    config.register({"recipe": schema})
    made: Any = config.build(compose("recipe", method.words[1:]), schema)
    assert Path("runs", method.folder) in [stage.folder for stage in plan(made)]


def line(policy: str, seed: int, score: float, kl_error: float | None = 0.1) -> dict[str, Any]:
    return {
        "policy": policy,
        "seed": seed,
        "responses": 8,
        "score": score,
        "kl": 1.5,
        "kl_error": kl_error,
        "judge": None,
        "distinct_2": 0.5,
        "length": 10.0,
        "perplexity": 30.0,
    }


def test_the_table_has_means_and_standard_errors_the_best_first(tmp_path: Path) -> None:
    """Scores 1, 2, 3: mean 2, deviation 1, standard error 1/√3."""
    lines = [line("SFT", seed, 0.0) for seed in range(3)]
    lines += [line("dpo", seed, seed + 1.0) for seed in range(3)]
    lines += [line("best of 4", seed, 1.0, kl_error=None) for seed in range(3)]
    found = markdown(lines).splitlines()
    assert found[0] == "**8 unseen prompts, temperature 1, 3 seeds, mean ± standard error**"
    numbers = "0.500 ± 0.000 | 10.0 ± 0.0 | 30.0 ± 0.0 |"
    assert found[4] == f"| dpo | 2.00 ± 0.58 | 1.50 ± 0.00 | – | {numbers}"
    assert found[5] == f"| best of 4 | 1.00 ± 0.00 | ≤ 1.50 | – | {numbers}"
    frontier(lines, tmp_path / "methods.png")
    assert (tmp_path / "methods.png").stat().st_size > 5000
