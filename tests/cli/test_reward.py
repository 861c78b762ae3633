"""``rlhf reward`` from beginning to end: every loss, kind of row and readout, and normalised scores."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf.algorithms.preferences import RewardLoss
from rlhf.config import GROUPS

LOSSES = [name for name, kind in GROUPS["loss"].items() if issubclass(kind, RewardLoss)]
ROWS = {
    "pairs": {"prompt": "the film", "chosen": " is good", "rejected": " is bad", "probability": 0.9},
    "rankings": {"prompt": "the film", "responses": [" is good", " is fine", " is bad"], "ranks": [1, 1, 2]},
    "labels": {"prompt": "the film", "response": " is good", "label": True},
    "contexts": {"prompt": "the sea is fine", "label": True},
}


@pytest.fixture
def arguments(workspace: Any) -> list[str]:
    """A run of two steps that would succeed."""
    return [
        *("name=new", f"model.path={workspace.sft}", "engine=plain", "micro_batch_size=4", "batch_size=6"),
        *("optimizer.lr=1e-2", "cadence.checkpoint_every=1", f"data.path={workspace.pairs}"),
    ]


def rows_of(kind: str, folder: Path) -> Path:
    file = folder / f"{kind}.jsonl"
    row: dict[str, Any] = ROWS[kind]
    rows = [row | {"prompt": f"{row['prompt']} {number % 6}"} for number in range(12)]
    if kind == "labels":
        rows = [one | {"response": f" {k}", "label": k < 6} for k, one in enumerate(rows)]
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return file


def test_the_page_explains_every_loss() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reward_models.md").read_text(encoding="utf-8")
    part = page.partition("## Losses")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE)[1:] == LOSSES  # after the title


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns_from_rankings(
    rlhf: Callable[..., Any], arguments: list[str], tmp_path: Path, loss: str
) -> None:
    file = rows_of("rankings", tmp_path)
    outcome = rlhf("reward", *arguments, f"loss={loss}", f"data.path={file}", f"test_data.path={file}")
    assert outcome.status == 0, outcome.err
    lines = [json.loads(line) for line in (tmp_path / "runs/new/metrics.jsonl").open()]
    assert lines[-1]["eval/loss"] < lines[0]["loss"]
    assert ("reward/ties_judged" in lines[0]) == (loss in ("rao_kupper", "davidson"))


@pytest.mark.parametrize("kind", ROWS)
def test_every_kind_of_row_is_read(
    rlhf: Callable[..., Any], arguments: list[str], tmp_path: Path, kind: str
) -> None:
    words = ["data.label_texts=[' so true',' so false']"] if kind == "contexts" else []
    outcome = rlhf("reward", *arguments, f"data.path={rows_of(kind, tmp_path)}", *words)
    assert outcome.status == 0, outcome.err


@pytest.mark.parametrize("unit_std", [False, True])
def test_transformers_alone_gives_the_normalised_score(
    rlhf: Callable[..., Any], arguments: list[str], workspace: Any, tmp_path: Path, unit_std: bool
) -> None:
    """Numerics D25 on a Llama: mean 0 of the demonstrations, and rlhf score agrees."""
    normalise = f"normalise.data.path={workspace.demonstrations}", f"normalise.unit_std={unit_std}".lower()
    outcome = rlhf("reward", *arguments, *normalise)
    assert outcome.status == 0, outcome.err
    found = json.loads((tmp_path / "runs/new/normalisation.json").read_text())
    assert (found["count"], found["gain"] != 1) == (12, unit_std)
    folder = tmp_path / "runs/new/model"
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForSequenceClassification.from_pretrained(folder),
    )
    rows = [json.loads(line) for line in workspace.demonstrations.open()]
    texts = [f"<bos>{row['prompt']}{row['response']}<eos>" for row in rows]
    with torch.no_grad():
        own = torch.cat(
            [model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits for text in texts]
        )
    assert own.double().mean().abs() < 1e-6
    assert not unit_std or own.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    scored = rlhf(
        "score", "name=scored", f"reward.path={tmp_path}/runs/new", f"data.path={workspace.demonstrations}"
    )
    assert scored.status == 0, scored.err
    scores = [json.loads(line)["score"] for line in (tmp_path / "runs/scored/scores.jsonl").open()]
    torch.testing.assert_close(torch.tensor(scores), own[:, 0], rtol=1e-5, atol=1e-5)


def test_scores_that_cannot_be_normalised_lose_no_model(
    rlhf: Callable[..., Any], arguments: list[str], tmp_path: Path
) -> None:
    """One demonstration, again and again, has no deviation."""
    file = tmp_path / "same.jsonl"
    file.write_text('{"prompt": "the sea", "response": " is fine"}\n' * 3)
    outcome = rlhf("reward", *arguments, f"normalise.data.path={file}", "normalise.unit_std=true")
    assert outcome.status != 0
    assert "different scores, all 3 have" in outcome.err
    assert "the model without it is in" in outcome.err
    raw = AutoModelForSequenceClassification.from_pretrained(tmp_path / "runs/new/model_as_trained")
    assert raw.config.num_labels == 1


def test_a_sum_over_tokens_is_saved_scored_and_optimised(
    rlhf: Callable[..., Any], arguments: list[str], rl_arguments: list[str], tmp_path: Path, workspace: Any
) -> None:
    outcome = rlhf("reward", *arguments, "readout=token_sum")
    assert outcome.status == 0, outcome.err
    reward = f"reward.path={tmp_path}/runs/new"
    assert json.loads((tmp_path / "runs/new/model/config.json").read_text())["score_readout"] == "token_sum"
    scored = rlhf("score", "name=scored", reward, f"data.path={workspace.demonstrations}")
    assert scored.status == 0, scored.err
    row = json.loads((tmp_path / "runs/scored/scores.jsonl").open().readline())
    folder = tmp_path / "runs/new/model"
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForSequenceClassification.from_pretrained(folder),
    )
    prompt, said = (
        tokenizer(text, add_special_tokens=False).input_ids
        for text in ("<bos>" + row["prompt"], row["response"] + "<eos>")
    )
    states = model.model(torch.tensor([prompt + said])).last_hidden_state
    expected = model.score(states)[0, len(prompt) :, 0].sum()
    assert row["score"] == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)
    optimised = rlhf("rl", *rl_arguments, reward, "name=rl", f"critic.path={workspace.reward}")
    assert optimised.status == 0, optimised.err


def test_an_ensemble_scores_files_and_is_optimised(
    rlhf: Callable[..., Any], arguments: list[str], rl_arguments: list[str], tmp_path: Path, workspace: Any
) -> None:
    assert rlhf("reward", *arguments, "seed=1").status == 0
    paths = f"reward.paths=[{workspace.reward},{tmp_path}/runs/new]"
    scores = {}
    settings = {"ensemble": ["reward.std_coef=1"], "ensemble_lowest": []}
    for name, more in settings.items():
        outcome = rlhf(
            "score", f"name={name}", f"reward={name}", paths, *more, f"data.path={workspace.demonstrations}"
        )
        assert outcome.status == 0, outcome.err
        scores[name] = [json.loads(line)["score"] for line in (tmp_path / f"runs/{name}/scores.jsonl").open()]
    assert scores["ensemble"] == pytest.approx(
        scores["ensemble_lowest"], abs=1e-5
    )  # of two, mean − std is the lowest
    online = [one for one in rl_arguments if not one.startswith("reward.path")]
    outcome = rlhf("rl", *online, "reward=ensemble", paths, "name=rl", f"critic.path={workspace.reward}")
    assert outcome.status == 0, outcome.err
    line = json.loads((tmp_path / "runs/rl/metrics.jsonl").open().readline())
    mean = (line["reward/member_1"] + line["reward/member_2"]) / 2
    assert line["reward/score"] == pytest.approx(mean, abs=1e-5)
    assert line["reward/disagreement"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["normalise.unit_std=true"], "normalise.data.path must name reference demonstrations"),
        (["readout=token_sum", "normalise.data.path=x"], "normalise.data.path must be null for TokenSum"),
        (
            ["lora=adapter", "lora.merge=false", "normalise.data.path=x"],
            "lora.merge must be true for normalise.data.path=x, got false",
        ),
        (["loss=davidson", "loss.tie_probability=1"], "Davidson.tie_probability must lie between 0 and 1"),
        (["loss=dpo"], "loss has no option 'dpo'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    rlhf: Callable[..., Any], arguments: list[str], settings: list[str], message: str
) -> None:
    outcome = rlhf("reward", *arguments, *settings)
    assert outcome.status != 0
    assert message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
