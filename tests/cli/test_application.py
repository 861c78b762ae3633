"""A command as a Hydra application: its flags, its run folders, and continuing a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf


def test_cfg_job_prints_the_configuration_and_runs_nothing(
    rlhf: Any, sft_arguments: list[str], tmp_path: Path
) -> None:
    outcome = rlhf("sft", *sft_arguments, "optimizer.lr=0.25", "--cfg", "job")
    assert outcome.status == 0, outcome.err
    printed = yaml.safe_load(outcome.out)
    assert printed["optimizer"]["lr"] == 0.25
    assert printed["model"]["hidden"] == 16
    assert list(tmp_path.iterdir()) == []


def test_resolved_configuration_is_in_the_run_folder(workspace: Any) -> None:
    saved = OmegaConf.load(workspace.sft / "config.yaml")
    assert saved.name == "sft"
    assert saved.batch_size == 6
    assert saved.optimizer.beta1 == 0.9  # a default that nobody set


def test_multirun_makes_a_run_folder_for_each_value(
    rlhf: Any, sft_arguments: list[str], tmp_path: Path
) -> None:
    outcome = rlhf("sft", *sft_arguments, "name=sweep", "optimizer.lr=0.001,0.01", "--multirun")
    assert outcome.status == 0, outcome.err
    runs = [tmp_path / "runs" / "sweep" / str(number) for number in range(2)]
    assert [OmegaConf.load(run / "config.yaml").optimizer.lr for run in runs] == [0.001, 0.01]
    assert all((run / "model" / "model.safetensors").is_file() for run in runs)
    losses = [[json.loads(line)["loss"] for line in (run / "metrics.jsonl").open()] for run in runs]
    assert losses[0][0] == losses[1][0]  # the same start …
    assert losses[0][1] != losses[1][1]  # … and another learning rate


def test_finished_run_continues_under_a_longer_configuration(
    rlhf: Any, sft_arguments: list[str], workspace: Any, tmp_path: Path
) -> None:
    used = tmp_path / "runs" / "used"
    shutil.copytree(workspace.sft, used)
    outcome = rlhf("sft", *sft_arguments, "name=used", "resume=true", "epochs=2")
    assert outcome.status == 0, outcome.err
    assert [json.loads(line)["step"] for line in (used / "metrics.jsonl").open()] == [1, 2, 3, 4]
    assert OmegaConf.load(used / "config.yaml").epochs == 2
    (told,) = [line for line in outcome.err.splitlines() if "changed configuration" in line]
    assert "- epochs: 1.0, + epochs: 2.0" in told  # what is not the same run any more is said


def test_traceback_is_shown_to_who_asks_for_it(rlhf: Any, sft_arguments: list[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    outcome = rlhf("sft", *sft_arguments, "optimizer.lr=-1")
    assert outcome.status == 1
    assert outcome.err.startswith("Traceback")
    assert outcome.err.endswith("\nrlhf sft: AdamW.lr must be positive, got -1.0\n")
