"""``rlhf preference`` from beginning to end, and the reference that it keeps."""

from __future__ import annotations

import gc
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rlhf.algorithms.preference_losses import PreferenceLoss
from rlhf.config import GROUPS
from rlhf.models.actor import Actor
from rlhf.trainers.preference import PreferenceTrainer

LOSSES = ["dpo", "cdpo", "ipo", "hinge", "kto", "orpo", "simpo", "unlikelihood", "preferred_ft"]
WITH_REFERENCE = ["dpo", "cdpo", "ipo", "hinge", "kto"]
KEPT = "reference_logprobs.safetensors"


@pytest.fixture
def arguments(workspace: Any) -> list[str]:
    """A run of two steps that would succeed."""
    return [
        *("name=new", f"model.path={workspace.sft}", f"data.path={workspace.pairs}", "engine=plain"),
        *("micro_batch_size=4", "batch_size=6", "optimizer.lr=1e-3", "cadence.checkpoint_every=1"),
    ]


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def test_every_loss_is_run_here() -> None:
    assert sorted(LOSSES) == sorted(
        name for name, kind in GROUPS["loss"].items() if issubclass(kind, PreferenceLoss)
    )


def test_the_page_explains_every_loss() -> None:
    page = (Path(__file__).parents[2] / "docs" / "preferences.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\| (yes|no) \|", page.partition("## Losses")[2], re.MULTILINE)
    reads = {name: GROUPS["loss"][name].needs_reference for name in LOSSES}  # type: ignore[attr-defined]
    assert {name: answer == "yes" for name, answer in rows} == reads


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_a_policy_and_keeps_a_reference_only_where_it_reads_one(
    rlhf: Any, arguments: list[str], workspace: Any, tmp_path: Path, loss: str
) -> None:
    outcome = rlhf("preference", *arguments, f"loss={loss}", f"test_data.path={workspace.pairs}")
    assert outcome.status == 0, outcome.err
    folder = tmp_path / "runs" / "new"
    rows = logged(folder)
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert "eval/reward/accuracy" in rows[-1]
    assert (folder / KEPT).exists() == (loss in WITH_REFERENCE)
    before = load_file(workspace.sft / "model" / "model.safetensors")
    after = load_file(folder / "model" / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_what_is_kept_has_a_number_for_each_text_and_says_what_it_was_measured_with(
    rlhf: Any, arguments: list[str], workspace: Any, tmp_path: Path
) -> None:
    rlhf("preference", *arguments, f"test_data.path={workspace.pairs}", "test_data.limit=5")
    with safe_open(tmp_path / "runs" / "new" / KEPT, framework="pt") as kept:
        assert set(kept.metadata()) == {"reference", "tokenizer", "data", "test_data"}
        assert all(len(value) == 64 for value in kept.metadata().values())
        assert kept.get_tensor("data").shape == (24,)
        assert kept.get_tensor("test_data").shape == (10,)


def test_the_first_loss_of_dpo_is_log_two(rlhf: Any, arguments: list[str], tmp_path: Path) -> None:
    rlhf("preference", *arguments)
    assert logged(tmp_path / "runs" / "new")[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_another_reference_is_read(rlhf: Any, arguments: list[str], workspace: Any, tmp_path: Path) -> None:
    assert rlhf("preference", *arguments).status == 0
    trained = tmp_path / "trained"
    shutil.move(tmp_path / "runs" / "new", trained)
    assert rlhf("preference", *arguments, f"reference.path={trained}").status == 0
    first = logged(tmp_path / "runs" / "new")[0]
    assert abs(first["loss"] - math.log(2)) > 1e-6
    kept = [load_file(folder / KEPT)["data"] for folder in (trained, tmp_path / "runs" / "new")]
    assert not torch.allclose(*kept)


def interrupted(folder: Path) -> None:
    """As a process leaves it that is killed after its last checkpoint but one."""
    for checkpoint in sorted((folder / "checkpoints").iterdir())[1:]:
        shutil.rmtree(checkpoint)
    shutil.rmtree(folder / "model")


@pytest.mark.parametrize("loss", ["dpo", "kto", "simpo"])
def test_a_continued_run_is_bitwise_the_uninterrupted_one(
    rlhf: Any, arguments: list[str], tmp_path: Path, loss: str
) -> None:
    folder = tmp_path / "runs" / "new"
    assert rlhf("preference", *arguments, f"loss={loss}").status == 0
    whole = load_file(folder / "model" / "model.safetensors")
    kept = (folder / KEPT).stat().st_mtime_ns if loss != "simpo" else None
    interrupted(folder)
    outcome = rlhf("preference", *arguments, f"loss={loss}", "resume=true")
    assert outcome.status == 0, outcome.err
    assert "reference log-probs" not in outcome.err
    if kept is not None:
        assert (folder / KEPT).stat().st_mtime_ns == kept
    again = load_file(folder / "model" / "model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def other_rows(workspace: Any, folder: Path) -> list[str]:
    rows = [json.loads(line) for line in workspace.pairs.open()]
    rows[3]["rejected"] = " is dull"
    changed = folder / "changed.jsonl"
    changed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"data.path={changed}"]


def other_reference(workspace: Any, folder: Path) -> list[str]:
    copied = folder / "copied"
    shutil.copytree(workspace.sft / "model", copied)
    weights = load_file(copied / "model.safetensors")
    name = next(iter(weights))
    weights[name][0] += 1e-3
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    return [f"reference.path={copied}"]


def other_tokenizer(workspace: Any, folder: Path) -> list[str]:
    copied = folder / "copied"
    shutil.copytree(workspace.sft / "model", copied)
    (copied / "chat_template.jinja").write_text("{{ messages }}")
    return [f"model.path={copied}"]


CHANGES: dict[str, Callable[[Any, Path], list[str]]] = {
    "data": other_rows,
    "reference": other_reference,
    "tokenizer": other_tokenizer,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_is_not_continued_with_something_else(
    rlhf: Any, arguments: list[str], workspace: Any, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "runs" / "new"
    assert rlhf("preference", *arguments).status == 0
    interrupted(folder)
    outcome = rlhf("preference", *arguments, *CHANGES[name](workspace, tmp_path), "resume=true")
    assert outcome.status == 1
    last = outcome.err.strip().splitlines()[-1]
    assert last.startswith("rlhf preference: ")
    assert f"{KEPT} was measured with something else, different in: {name};" in last


def test_a_run_is_not_continued_without_what_it_was_trained_with(
    rlhf: Any, arguments: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "new"
    assert rlhf("preference", *arguments).status == 0
    interrupted(folder)
    (folder / KEPT).unlink()
    outcome = rlhf("preference", *arguments, "resume=true")
    assert outcome.status == 1
    assert f"{KEPT}, which the run so far was trained with, is gone" in outcome.err


@pytest.mark.parametrize("engine", ["plain", "zero2", "zero3"])
def test_the_reference_is_gone_before_training(
    rlhf: Any, arguments: list[str], monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    alive: list[list[Actor]] = []
    step = PreferenceTrainer.step

    def counted(self: PreferenceTrainer) -> Any:
        others = [thing for thing in gc.get_objects() if isinstance(thing, Actor)]
        alive.append([other for other in others if other is not self.engine.module and weighs(other)])
        return step(self)

    gc.collect()
    before = {id(thing) for thing in gc.get_objects() if isinstance(thing, Actor) and weighs(thing)}
    monkeypatch.setattr(PreferenceTrainer, "step", counted)
    outcome = rlhf("preference", *arguments, f"engine={engine}")
    assert outcome.status == 0, outcome.err
    assert len(alive) == 2
    assert [actor for actors in alive for actor in actors if id(actor) not in before] == []


def weighs(actor: Actor) -> int:
    """Numbers that it holds, of a split model this rank's share."""
    return sum(getattr(p, "ds_tensor", p).numel() + p.numel() for p in actor.parameters())


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            ["loss=orpo", "reference.path=x"],
            "reference.path must be null for ORPO, which reads no reference, got x",
        ),
        (["loss=ipo", "loss.beta=1"], "unknown key loss.beta: it goes with loss="),
        (["loss=bradley_terry"], "loss has no option 'bradley_terry'; there are cdpo, dpo,"),
        (["loss=dpoo"], "loss has no option 'dpoo'; did you mean dpo?"),
        (["sft_coef=-1"], "Preference.sft_coef must not be negative, got -1"),
        (["epochs=0"], "Preference.epochs must be positive, got 0"),
        (["reference.path=nowhere/at/all"], "nowhere/at/all does not exist"),
        (["data.max_length=2"], ":1: has "),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    rlhf: Any, arguments: list[str], extra: list[str], message: str
) -> None:
    outcome = rlhf("preference", *arguments, *extra)
    assert outcome.status == 1
    last = outcome.err.strip().splitlines()[-1]
    assert last.startswith("rlhf preference: ")
    assert message in last


def test_a_reward_models_losses_are_not_a_policys(rlhf: Any) -> None:
    outcome = rlhf("reward", "loss=dpo")
    known = "best_response, bradley_terry, davidson, rao_kupper"
    assert outcome.err == f"rlhf reward: loss has no option 'dpo'; there are {known}\n"
