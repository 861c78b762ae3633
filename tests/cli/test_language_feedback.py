"""Imitation from language feedback, command by command: more held-out tasks are solved than before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.programs import main

pytestmark = pytest.mark.slow

VERIFIER = ("reward=unit_tests", "reward.with_prompt=true")
TEACHER = (
    *("feedback=function", "feedback.function=rlhf.data.programs:explain"),
    *("refiner=function", "refiner.function=rlhf.data.programs:revise"),
)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_the_pass_rate_on_held_out_tasks_rises(rlhf: Any, tmp_path: Path) -> None:
    pytest.importorskip("rlhf.cli.select")
    runs = tmp_path / "runs"
    main([str(runs / "data"), "--test", "120", "--supervised", "350", "--prompts", "250", "--wrong", "0.5"])

    def run(*words: str) -> None:
        outcome = rlhf(*words)
        if "no sandbox" in outcome.err:
            pytest.skip(outcome.err)
        assert outcome.status == 0, outcome.err

    def solved(name: str, model: Path) -> float:
        test = ("decoding.max_new_tokens=24", f"prompts.path={runs / 'data' / 'test.jsonl'}")
        run("generate", f"name={name}", f"model.path={model}", *test, *VERIFIER, "micro_batch_size=120")
        scores = [row["score"] for row in lines(runs / name / "responses.jsonl")]
        return sum(scores) / len(scores)

    data = (f"data.path={runs / 'data' / 'supervised.jsonl'}", "test_data.path=null")
    run("sft", "experiment=language_feedback/sft", "name=sft", *data)
    prompts = runs / "data" / "prompts.jsonl"
    policy = (f"model.path={runs / 'sft'}", f"prompts.path={prompts}", "decoding.max_new_tokens=24")
    run("generate", "name=tries", *policy, *VERIFIER, "samples=2", "micro_batch_size=250")
    run(
        "refine",
        "name=refined",
        f"input=[{runs / 'tries' / 'responses.jsonl'}]",
        f"tasks={prompts}",
        *TEACHER,
    )
    refinements = f"data.path={runs / 'refined' / 'refinements.jsonl'}"
    run("score", "name=scored", refinements, f"tokenizer={runs / 'sft' / 'model'}", *VERIFIER)
    scored = f"input=[{runs / 'scored' / 'scores.jsonl'}]"
    run("select", "name=selected", scored, "selection=above", "selection.threshold=1")
    start = ("model=pretrained", f"model.path={runs / 'sft'}", "engine=plain", "optimizer.lr=1e-3")
    rows = (f"data.path={runs / 'selected' / 'selected.jsonl'}", "batch_size=32", "epochs=3")
    run("sft", "name=better", *start, *rows)

    refined = lines(runs / "refined" / "refinements.jsonl")
    tries = lines(runs / "tries" / "responses.jsonl")
    assert len(refined) == sum(row["score"] < 1 for row in tries)
    learnt, held_out = lines(runs / "selected" / "selected.jsonl"), lines(runs / "data" / "test.jsonl")
    assert 0.5 < len(learnt) / len(refined) < 0.8  # the refiner is right in two cases of three
    assert not {row["prompt"] for row in learnt} & {row["prompt"] for row in held_out}
    before, after = solved("before", runs / "sft"), solved("after", runs / "better")
    assert after > before + 0.2, (before, after)  # three standard errors of the difference are 0.17
