"""``rlhf refine``: failed responses go in, new ones come out, ready for ``rlhf score``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

TASK = {"tests": ["assert f(1) == 2", "assert f(5) == 6"], "answer": " x + 1"}
PROMPT = "# 1 more than x\nf = lambda x:"
TEACHER = (
    "feedback=function",
    "feedback.function=rlhf.data.programs:explain",
    "refiner=function",
    "refiner.function=my_refiner:fix",
)
REFINER = """
def fix(prompts, responses, columns):
    if any("boom" in response for response in responses):
        raise KeyError("boom")
    return [row["feedback"].rpartition("asks for")[2] if "-" in response else response
            for response, row in zip(responses, columns)]

def few(prompts, responses, columns):
    return ["x"]

def numbers(prompts, responses, columns):
    return [1 for _ in responses]
"""


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    drafts = [(" x - 1", 0.0), (" x + 1", 1.0), (" x * 1", 0.0), (" x - 1", 0.0)]
    responses = [{"prompt": PROMPT, "response": text, "score": score} for text, score in drafts]
    rows = {"responses": responses, "tasks": [{"prompt": "# other"}, {"prompt": PROMPT, **TASK}]}
    (tmp_path / "my_refiner.py").write_text(REFINER)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, content in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return {name: tmp_path / f"{name}.jsonl" for name in rows}


def given(files: dict[str, Path]) -> list[str]:
    return [f"input=[{files['responses']}]", f"tasks={files['tasks']}"]


def test_each_failed_response_gets_a_new_one_that_score_reads(
    rlhf: Any, workspace: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    outcome = rlhf("refine", "name=new", *given(files), *TEACHER, "micro_batch_size=2")
    assert outcome.status == 0, outcome.err
    assert "4 responses read, 3 failed, 3 refinements: " in outcome.out
    folder = tmp_path / "runs" / "new"
    said = "f returns x - 1, but the task asks for x + 1"
    first, second, third = lines(folder / "refinements.jsonl")
    texts = {"prompt": PROMPT, "response": " x + 1", "ended": True, "draft": " x - 1"}
    assert first == third == texts | TASK | {"feedback": said}
    assert (second["draft"], second["response"]) == (" x * 1", " x * 1")
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "refinements.jsonl"]

    pytest.importorskip("resource")
    scored = rlhf(
        "score",
        "name=scored",
        f"data.path={folder / 'refinements.jsonl'}",
        f"tokenizer={workspace.sft / 'model'}",
        *("reward=unit_tests", "reward.with_prompt=true"),
    )
    if "no sandbox" in scored.err:
        pytest.skip(scored.err)
    assert scored.status == 0, scored.err
    assert [row["score"] for row in lines(tmp_path / "runs" / "scored" / "scores.jsonl")] == [1.0, 0.0, 1.0]


def test_feedback_may_stand_beside_the_responses(rlhf: Any, files: dict[str, Path], tmp_path: Path) -> None:
    rows = [row | {"said": f"asks for {n}"} for n, row in enumerate(lines(files["responses"]))]
    files["responses"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    feedback = ["feedback.column=said", *TEACHER[2:]]
    outcome = rlhf("refine", "name=new", *given(files), *feedback)
    assert outcome.status == 0, outcome.err
    new = [row["response"] for row in lines(tmp_path / "runs" / "new" / "refinements.jsonl")]
    assert new == [" 0", " x * 1", " 3"]


def test_a_model_goes_on_from_all_three(
    rlhf: Any, workspace: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    model = [
        *("refiner=model", f"refiner.path={workspace.sft}", "refiner.samples=2"),
        *("refiner.sampling.max_new_tokens=4", 'refiner.template="{feedback}!"', "micro_batch_size=4"),
    ]
    rows = [row | {"feedback": "film"} for row in lines(files["responses"])]
    files["responses"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("one", "two"):
        outcome = rlhf("refine", f"name={name}", *given(files), *model)
        assert outcome.status == 0, outcome.err
    assert "4 responses read, 3 failed, 6 refinements: " in outcome.out
    folder = tmp_path / "runs" / "one"
    assert lines(folder / "asked.jsonl") == [{"prompt": "film!"}] * 3
    new = lines(folder / "refinements.jsonl")
    assert new == lines(tmp_path / "runs" / "two" / "refinements.jsonl")
    assert [row["draft"] for row in new] == [" x - 1"] * 2 + [" x * 1"] * 2 + [" x - 1"] * 2
    assert all(isinstance(row["ended"], bool) and row["tests"] == TASK["tests"] for row in new)
    assert len({row["response"] for row in new}) > 1  # they are drawn


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["input=[]"], "input must name files of scored responses"),
        (["input=[nothing.jsonl]"], "nothing.jsonl: no such file"),
        (["threshold=0"], "all 4 responses score at least 0: nothing to refine"),
        (["tasks=null", "feedback=column"], "responses.jsonl:1: feedback in column 'feedback' is None"),
        (["refiner.function=my_refiner:few"], "my_refiner:few returned 1 texts for 3 responses"),
        (["refiner.function=my_refiner:numbers"], "my_refiner:numbers must return a list of 3 texts, got [1"),
        (["refiner.function=my_refiner:nobody"], "cannot import my_refiner:nobody"),
        (["micro_batch_size=0"], "Refine.micro_batch_size must be positive, got 0"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_no_refinements(
    rlhf: Any, files: dict[str, Path], tmp_path: Path, changes: list[str], message: str
) -> None:
    teacher = [word for word in TEACHER if not (word.startswith("feedback") and "feedback=column" in changes)]
    outcome = rlhf("refine", "name=new", *given(files), *teacher, *changes)
    assert outcome.status == 1
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("rlhf refine: ")]
    assert message in line
    assert not (tmp_path / "runs" / "new" / "refinements.jsonl").exists()


def test_a_function_that_raises_names_the_response(rlhf: Any, files: dict[str, Path]) -> None:
    rows = lines(files["responses"])
    rows[2]["response"] = "boom"
    files["responses"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = rlhf("refine", "name=new", *given(files), *TEACHER)
    assert outcome.status == 1
    assert "my_refiner:fix raised KeyError: 'boom' (" in outcome.err
    assert f"on response 1, prompt {PROMPT!r}" in outcome.err


def test_refinements_are_not_overwritten(rlhf: Any, files: dict[str, Path], tmp_path: Path) -> None:
    for status in (0, 1):
        outcome = rlhf("refine", "name=new", *given(files), *TEACHER)
        assert outcome.status == status
    assert "already holds refinements.jsonl" in outcome.err
