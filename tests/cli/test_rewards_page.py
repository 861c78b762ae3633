"""The commands of docs/rewards.md run as they stand, only smaller; misuse prints what the page says."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from rlhf.data import instructions, programs, reasoning_gym

pytest.importorskip("reasoning_gym")
pytest.importorskip("math_verify")
if find_spec("if_verifiable") is None:  # imported whole, it would download files
    pytest.skip("if-verifiable is not installed", allow_module_level=True)

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
COMMANDS = [shlex.split(line)[1:] for line in LINES if line.startswith("rlhf ")]
MODULES = {
    "rlhf.data.reasoning_gym": reasoning_gym.main,
    "rlhf.data.instructions": instructions.main,
    "rlhf.data.programs": programs.main,
}
SMALL = {
    "rl": (
        "engine=plain",
        "micro_batch_size=8",
        "rollout.prompts=4",
        "rollout.sampling.max_new_tokens=4",
        "rollouts=1",
        "prompts.limit=8",
        "cadence.checkpoint_every=0",
    ),
    "generate": ("prompts.limit=4", "decoding.max_new_tokens=4"),
    "score": (),
    "evaluate": ("prompts.limit=4", "sampling.max_new_tokens=4"),
}


@pytest.fixture
def documented(workspace: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the page's commands read: its own data commands, run with fewer rows."""
    runs = tmp_path / "runs"
    for name, source in {
        "arithmetic/sft": workspace.sft,
        "quickstart/sft": workspace.sft,
        "quickstart/reward": workspace.reward,
        "quickstart/preference": workspace.sft,
    }.items():
        shutil.copytree(source / "model", runs / name / "model")
    config = runs / "arithmetic" / "sft" / "model" / "config.json"
    shape = json.loads(config.read_text()) | {"max_position_embeddings": 256}  # constraints are long
    config.write_text(json.dumps(shape))
    (runs / "quickstart" / "data").mkdir()
    (runs / "quickstart" / "data" / "prompts_train.jsonl").write_bytes(workspace.prompts.read_bytes())
    monkeypatch.chdir(tmp_path)
    few = {"rlhf.data.reasoning_gym": ["--test", "4", "--supervised", "4", "--prompts", "12"]}
    MODULES["rlhf.data.reasoning_gym"](["chain_sum", "runs/arithmetic/data", *few["rlhf.data.reasoning_gym"]])
    few["rlhf.data.instructions"] = ["--test", "2"]
    few["rlhf.data.programs"] = ["--test", "1", "--supervised", "4", "--prompts", "4"]
    for line in LINES:
        if line.startswith("python -m "):
            _, _, module, *words = shlex.split(line)
            MODULES[module]([*words, *few[module]])
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "my_rewards.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_page_shows_every_reward() -> None:
    from rlhf.config import GROUPS

    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", PAGE.partition("\n## ")[0], re.MULTILINE)
    shown = {name for row in rows for name in re.findall(r"\w+", row)}
    used = set(re.findall(r"(?:reward=|reward\.parts\.\w+=)(\w+)", "\n".join(LINES)))
    elsewhere = {"none", "endpoint", "ensemble", "ensemble_lowest"}  # docs/serving.md, docs/reward_models.md
    assert shown == used | elsewhere == set(GROUPS["reward"])


@pytest.mark.parametrize("words", COMMANDS, ids=[words[1] for words in COMMANDS])
def test_a_documented_command_runs(rlhf: Any, documented: Path, words: list[str]) -> None:
    name, *arguments = words
    outcome = rlhf(name, *arguments, *SMALL[name])
    if "no sandbox" in outcome.err:
        pytest.skip(outcome.err)
    assert outcome.status == 0, outcome.err
    if name == "rl":
        folder = documented / "runs" / arguments[0].removeprefix("name=")
        (row,) = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert "reward/score" in row


def test_demonstrations_are_scored_by_their_own_columns(rlhf: Any, documented: Path) -> None:
    """Every demonstration is right; with an answer of another row it is not."""
    data = documented / "runs" / "arithmetic" / "data" / "test.jsonl"
    shared = ("tokenizer=runs/arithmetic/sft/model", f"data.path={data}")
    for reward in ("math_answer", "exact_match", "reasoning_gym", "math_expression"):
        outcome = rlhf("score", f"name={reward}", f"reward={reward}", *shared)
        assert "4 scores, mean 1.0000" in outcome.out, outcome.err
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    data.write_text("".join(json.dumps(row | {"answer": "1000"}) + "\n" for row in rows[:2]))
    assert "2 scores, mean 0.0000" in rlhf("score", "name=wrong", "reward=math_answer", *shared).out


@pytest.mark.parametrize(
    ("reward", "columns", "message"),
    [
        ("exact_match", {"city": "x"}, "ExactMatch: the prompt's row has no column 'answer', it has 'city'"),
        ("math_answer", {}, "MathAnswer: the prompt's row has no column 'answer', it has no other column"),
        ("math_expression", {"answer": [1, None]}, "MathExpression: the row's column 'answer' must be text"),
        ("reasoning_gym", {"answer": "1"}, "ReasoningGym: the prompt's row has no column 'task', it has"),
        ("reasoning_gym", {"task": "sums", "entry": {}}, "ReasoningGym: reasoning-gym has no task 'sums'"),
        (
            "instructions",
            {"instructions": []},
            "Instructions: the row's column 'instructions' must be a list",
        ),
        (
            "instructions",
            {"instructions": [{"id": "no_comma", "arguments": {}}]},
            "Instructions: there is no constraint 'no_comma'",
        ),
    ],
)
def test_a_verifier_on_rows_of_another_kind_is_one_line(  # noqa: PLR0917 - fixtures
    rlhf: Any, workspace: Any, tmp_path: Path, reward: str, columns: dict[str, Any], message: str
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "the film", "response": " is good", **columns}) + "\n")
    tokenizer = f"tokenizer={workspace.sft / 'model'}"
    outcome = rlhf("score", "name=new", f"reward={reward}", tokenizer, f"data.path={data}")
    assert outcome.status == 1
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("rlhf score: ")]
    assert line.startswith(f"rlhf score: {message}")
    assert line.endswith(" on response 0, prompt 'the film'")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("my_rewards:brif", "cannot import my_rewards:brif: module 'my_rewards' has no attribute 'brif'"),
        ("my_reward:brief", "cannot import my_reward:brief: No module named 'my_reward'"),
        ("my_rewards.brief", "a function is given as package.module:name, got 'my_rewards.brief'"),
    ],
)
def test_a_function_that_is_not_there_is_named(
    rlhf: Any, documented: Path, function: str, message: str
) -> None:
    (words,) = [words for words in COMMANDS if words[1] == "name=my/brief"]
    outcome = rlhf("rl", *words[1:], *SMALL["rl"], f"reward.function={function}")
    assert outcome.status == 1
    assert f"rlhf rl: {message}\n" in outcome.err
