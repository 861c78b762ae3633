from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from benchmarks.presets.runs import all_runs, presets
from benchmarks.presets.table import curves, markdown
from rlhf import config
from rlhf.cli.composition import compose

config.register({"rl": config.RL})
RUNS = all_runs(Path("runs"), 1)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.slug)
def test_every_run_composes_with_as_many_responses(run: Any) -> None:
    arguments = [word for word in run.arguments(Path("scratch")) if not word.startswith("hydra.")]
    raw = compose("rl", arguments)
    assert OmegaConf.missing_keys(raw) == set()
    built = config.build(raw, config.RL)
    assert built.rollout.prompts * built.rollout.samples == 128
    in_reward = type(built.algorithm.kl).__name__ == "KLInReward"
    assert not in_reward or built.algorithm.kl.coef == run.task.kl_coef


def test_no_preset_is_left_out() -> None:
    assert {run.preset for run in RUNS} == set(presets())
    assert len({run.slug for run in RUNS}) == len(RUNS)


def line(label: str, seed: int, score: float) -> dict[str, Any]:
    numbers = {
        "reward/score": score,
        "actor/kl_reference": 1.0,
        "rollout/length": 3.0,
        "rollout/ended_fraction": 1.0,
    }
    return {
        "task": "sums",
        "label": label,
        "seed": seed,
        "rollouts": 2,
        "steps": 8,
        "seconds_per_rollout": 0.5,
        "start": numbers | {"reward/score": 0.25},
        "curve": {"reward/score": [0.0, score], "actor/kl_reference": [0.0, 1.0]},
        **numbers,
    }


def test_the_table_has_means_and_standard_errors() -> None:
    """Scores 1, 2, 3: mean 2, deviation 1, standard error 1/√3."""
    found = markdown([line("ppo", seed, float(seed + 1)) for seed in range(3)]).splitlines()
    assert found[0] == "**sums: 2 rollouts of 128 responses, 3 seeds, mean ± standard error**"
    assert found[4].startswith("| start | 0 | 0.25 ± 0.00 | 1.00 ± 0.00 |")
    assert found[5] == "| `ppo` | 8 | 2.00 ± 0.58 | 1.00 ± 0.00 | 3.00 ± 0.00 | 1.00 ± 0.00 | 0.50 ± 0.00 |"


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    curves([line("ppo", 0, 1.0), line("ppo epochs=1", 0, 1.0)], tmp_path / "presets.png")
    assert (tmp_path / "presets.png").stat().st_size > 5000
