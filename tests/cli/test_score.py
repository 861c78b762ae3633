"""``rlhf score`` writes the number that transformers alone computes from the folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def test_score_is_the_logit_of_the_saved_classifier(rlhf: Any, workspace: Any, tmp_path: Path) -> None:
    rows = [
        {"prompt": "the film", "response": " is good"},
        {"prompt": "a", "response": " long , dull story and the sea"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = rlhf("score", "name=scores", f"reward.path={workspace.reward}", f"data.path={file}")
    assert outcome.status == 0, outcome.err
    written = [json.loads(line) for line in (tmp_path / "runs" / "scores" / "scores.jsonl").open()]

    tokenizer = AutoTokenizer.from_pretrained(workspace.reward / "model")
    model = AutoModelForSequenceClassification.from_pretrained(workspace.reward / "model")
    for row, found in zip(rows, written, strict=True):
        apart = [tokenizer(row[key], add_special_tokens=False)["input_ids"] for key in ("prompt", "response")]
        tokens = [tokenizer.bos_token_id, *apart[0], *apart[1], tokenizer.eos_token_id]
        with torch.no_grad():
            logit = model(input_ids=torch.tensor([tokens])).logits.item()
        assert found == row | {"score": pytest.approx(logit, rel=1e-4)}  # padded beside a longer row
    mean = sum(row["score"] for row in written) / 2
    assert f"2 scores, mean {mean:.4f}: " in outcome.out


def test_a_row_is_written_as_it_came_with_its_score(rlhf: Any, workspace: Any, tmp_path: Path) -> None:
    """Its other columns stay, an old score does not, and the texts have their usual names."""
    file = tmp_path / "rows.jsonl"
    row = {"score": 7.0, "ended": True, "q": "the film", "a": " is good", "answer": 4}
    file.write_text(json.dumps(row) + "\n")
    fields = ["data.prompt_field=q", "data.response_field=a"]
    outcome = rlhf("score", "name=scores", f"reward.path={workspace.reward}", f"data.path={file}", *fields)
    assert outcome.status == 0, outcome.err
    written = json.loads((tmp_path / "runs" / "scores" / "scores.jsonl").read_text())
    kept = {"prompt": "the film", "response": " is good", "ended": True, "answer": 4}
    assert {name: value for name, value in written.items() if name != "score"} == kept
    assert written["score"] != 7.0


def test_a_score_that_is_none_names_its_row_and_leaves_no_file_that_looks_whole(
    rlhf: Any, workspace: Any, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(workspace.reward / "model", broken)
    weights = load_file(broken / "model.safetensors")
    weights["score.weight"][:] = 3e38  # finite, but no sum of them is
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    outcome = rlhf("score", "name=scores", f"reward.path={broken}", f"data.path={workspace.demonstrations}")
    assert outcome.status == 1
    assert f"{workspace.demonstrations}:1: the reward gave " in outcome.err
    assert outcome.err.endswith(" to this response: a score must be finite\n")
    assert not (tmp_path / "runs/scores/scores.jsonl").exists()
    outcome = rlhf(
        "score", "name=scores", f"reward.path={workspace.reward}", f"data.path={workspace.demonstrations}"
    )
    assert outcome.status == 0, outcome.err
    assert not (tmp_path / "runs/scores/scores.part").exists()


def test_reward_function_needs_a_tokenizer(rlhf: Any, workspace: Any) -> None:
    function = ["reward=function", "reward.function=rlhf.rewards.vader:vader"]
    outcome = rlhf("score", *function, f"data.path={workspace.demonstrations}")
    assert outcome.status == 1
    assert "tokenizer must name one" in outcome.err
