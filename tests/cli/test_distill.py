"""``rlhf distill`` and ``rlhf sft kl_coef=…`` from beginning to end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture
def teacher(workspace: Any, tmp_path: Path) -> Path:
    """The student's start with other weights."""
    copied = tmp_path / "teacher"
    shutil.copytree(workspace.sft / "model", copied)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: weight + 0.1 * torch.randn(weight.shape, generator=generator)
        for name, weight in load_file(copied / "model.safetensors").items()
    }
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    return copied


@pytest.fixture
def arguments(workspace: Any, teacher: Path) -> list[str]:
    """A run of three rounds that would succeed."""
    return [
        *("name=new", f"student.path={workspace.sft}", f"teacher.path={teacher}"),
        *(f"prompts.path={workspace.prompts}", "engine=plain", "optimizer.lr=1e-2", "rounds=3"),
        *("rollout.prompts=4", "rollout.sampling.max_new_tokens=4", "batch_size=4", "micro_batch_size=4"),
        "cadence.checkpoint_every=1",
    ]


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def last_line(outcome: Any) -> str:
    assert outcome.status == 1
    return outcome.err.strip().splitlines()[-1]


@pytest.mark.parametrize("engine", ["plain", "zero2", "zero3"])
@pytest.mark.parametrize("mixture", ["constant", "linear"])
def test_a_run_leaves_metrics_samples_and_a_model(  # noqa: PLR0917  fixtures
    rlhf: Any, arguments: list[str], workspace: Any, tmp_path: Path, engine: str, mixture: str
) -> None:
    extra = [f"engine={engine}", f"mixture={mixture}", "divergence=jensen_shannon"]
    test = [f"test_prompts.path={workspace.prompts}", "test_prompts.limit=5"]
    outcome = rlhf("distill", *arguments, *extra, *test)
    assert outcome.status == 0, outcome.err
    folder = tmp_path / "runs" / "new"
    rows = logged(folder)
    names = {"loss", "actor/kl_teacher_forward", "actor/kl_teacher_reverse", "actor/entropy", "actor/lr"}
    names |= {"teacher/entropy", "actor/grad_norm", "ledger/logprob_gap_max", "rollout/length"}
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(names <= row.keys() for row in rows)
    assert {f"eval/{name}" for name in ("loss", "rollout/length", "actor/entropy")} <= rows[-1].keys()
    samples = [json.loads(line) for line in (folder / "samples.jsonl").open()]
    assert len(samples) == 12
    assert (folder / "model" / "tokenizer_config.json").is_file()
    assert rlhf("sft", "name=on", "model=pretrained", f"model.path={folder}", "engine=plain",
                f"data.path={workspace.demonstrations}", "batch_size=4").status == 0  # fmt: skip


def test_a_continued_run_is_bitwise_the_uninterrupted_one(
    rlhf: Any, arguments: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "new"
    arguments += ["keep_rounds=null", "mixture=geometric"]
    assert rlhf("distill", *arguments).status == 0
    whole = load_file(folder / "model" / "model.safetensors")
    for checkpoint in sorted((folder / "checkpoints").iterdir())[1:]:
        shutil.rmtree(checkpoint)
    shutil.rmtree(folder / "model")
    outcome = rlhf("distill", *arguments, "resume=true")
    assert outcome.status == 0, outcome.err
    again = load_file(folder / "model" / "model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert [row["step"] for row in logged(folder)] == [1, 2, 3]


def test_a_teacher_with_another_tokenizer_is_refused(
    rlhf: Any, arguments: list[str], workspace: Any, teacher: Path, tmp_path: Path
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(workspace.chat_tokenizer / name, teacher / name)
    line = last_line(rlhf("distill", *arguments))
    assert line == (
        f"rlhf distill: the teacher {teacher} has another tokenizer than the student, and distillation "
        "compares token by token: 2 are in one alone or numbered otherwise, such as '<|im_end|>'"
    )
    assert not (tmp_path / "runs" / "new" / "metrics.jsonl").exists()


def test_a_teacher_without_a_tokenizer_is_refused(rlhf: Any, arguments: list[str], teacher: Path) -> None:
    for file in teacher.glob("tokenizer*"):
        file.unlink()
    assert f"{teacher}: no tokenizer can be loaded" in last_line(rlhf("distill", *arguments))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rounds=0", "Distill.rounds must be positive, got 0"),
        ("steps=0", "Distill.steps must be positive, got 0"),
        ("keep_rounds=0", "Distill.keep_rounds must be positive, got 0"),
        ("temperature=0", "Distill.temperature must be positive and finite, got 0.0"),
        ("mixture.beta=2", "Constant.beta must lie in [0, 1], got 2.0"),
        ("teacher.path=nowhere/at/all", "nowhere/at/all does not exist"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    rlhf: Any, arguments: list[str], override: str, message: str
) -> None:
    assert message in last_line(rlhf("distill", *arguments, override))


# The KL term of rlhf sft


@pytest.fixture
def supervised(workspace: Any) -> list[str]:
    return [
        *("name=new", "model=pretrained", f"model.path={workspace.sft}", "engine=plain", "epochs=3"),
        *(f"data.path={workspace.demonstrations}", "batch_size=6", "micro_batch_size=6", "optimizer.lr=1e-2"),
    ]


def test_supervised_training_stays_near_where_it_started(
    rlhf: Any, supervised: list[str], tmp_path: Path
) -> None:
    kls = []
    for coef in (0.001, 3.0):
        outcome = rlhf("sft", *supervised, "epochs=20", f"kl_coef={coef}", f"name=near{coef}")
        assert outcome.status == 0, outcome.err
        rows = logged(tmp_path / "runs" / f"near{coef}")
        assert rows[0]["actor/kl_reference_per_token"] == 0
        kls.append(rows[-1]["actor/kl_reference_per_token"])
    assert kls[1] < 0.5 * kls[0]


def test_a_coefficient_of_zero_is_no_term_at_all(rlhf: Any, supervised: list[str], tmp_path: Path) -> None:
    for name, extra in (("without", []), ("zero", ["kl_coef=0"])):
        assert rlhf("sft", *supervised, *extra, f"name={name}").status == 0
    models = [
        load_file(tmp_path / "runs" / name / "model" / "model.safetensors") for name in ("without", "zero")
    ]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert "actor/kl_reference_per_token" not in logged(tmp_path / "runs" / "zero")[0]


def test_another_reference_may_be_named(
    rlhf: Any, supervised: list[str], teacher: Path, tmp_path: Path
) -> None:
    outcome = rlhf("sft", *supervised, "kl_coef=0.5", f"reference.path={teacher}")
    assert outcome.status == 0, outcome.err
    assert logged(tmp_path / "runs" / "new")[0]["actor/kl_reference_per_token"] > 0


def test_a_model_from_scratch_is_its_own_reference(
    rlhf: Any, sft_arguments: list[str], tmp_path: Path
) -> None:
    outcome = rlhf("sft", *sft_arguments, "kl_coef=0.5")
    assert outcome.status == 0, outcome.err
    assert logged(tmp_path / "runs" / "new")[0]["actor/kl_reference_per_token"] == 0


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["kl_coef=-1"], "SFT.kl_coef must not be negative or infinite, got -1.0"),
        (["reference.path=runs/other"], "kl_coef must be positive for reference.path=runs/other, got 0"),
    ],
)
def test_a_term_that_means_nothing_is_refused(
    rlhf: Any, supervised: list[str], extra: list[str], message: str
) -> None:
    assert message in last_line(rlhf("sft", *supervised, *extra))
