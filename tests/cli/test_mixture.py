"""Mixtures and verifiers from the command line: composed, refused, and logged part by part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf import config
from rlhf.cli.composition import compose
from rlhf.cli.main import COMMANDS
from rlhf.rewards.sources import RewardFunction, RewardMixture, RewardModel
from rlhf.rewards.verifiers import ExactMatch

FUNCTIONS = """
import time

def short(prompts, responses, columns):
    return [-float(len(response)) for response in responses]

def late(prompts, responses, columns):
    return [1.0 / (row["day"] - 2) for row in columns]

def sleepy(prompts, responses, columns):
    time.sleep(60)
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"functions_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


MIXTURE = (
    "reward=mixture",
    "+reward@reward.parts.right=exact_match",
    "+reward@reward.parts.short=function",
    "+reward.weights={right: 2.0, short: 0.5}",
)


def built(*overrides: str) -> Any:
    config.register(SCHEMAS)
    return config.build(compose("rl", [*overrides]), config.RL).reward


SCHEMAS = {"rl": config.RL}


def test_a_mixture_is_written_on_the_command_line() -> None:
    made = built(*MIXTURE, "reward.parts.short.function=a:b", "reward.parts.right.answer=city")
    assert made == RewardMixture(
        parts={"right": ExactMatch(answer="city"), "short": RewardFunction(function="a:b")},
        weights={"right": 2.0, "short": 0.5},
    )


def test_a_part_may_be_a_model() -> None:
    made = built(
        "reward=mixture", "+reward@reward.parts.m=model", "reward.parts.m.path=x", "+reward.weights.m=1"
    )
    assert made == RewardMixture(parts={"m": RewardModel(path="x")}, weights={"m": 1.0})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reward.parts.right.anser=city", "unknown key reward.parts.right.anser"),
        ("+reward.parts.right.anser=city", "unknown key reward.parts.right.anser"),
        ("reward.wheights.right=1", "unknown key reward.wheights.right"),
        ("+reward.weights.rihgt=1", "weights must name every part (right, short) and no other"),
        ("reward.weights.right=much", "reward.weights.right"),
        ("~reward.weights.right", "weights must name every part (right, short) and no other, got short"),
        ("+reward@reward.parts.more=exact", "reward has no option 'exact'; did you mean exact_match?"),
        ("reward.parts.short.timeout_seconds=0", "RewardFunction.timeout_seconds must be positive, got 0.0"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(
    rlhf: Any, rl_arguments: list[str], override: str, message: str
) -> None:
    arguments = [word for word in rl_arguments if not word.startswith("reward.path")]
    outcome = rlhf("rl", *arguments, *MIXTURE, "reward.parts.short.function=a:b", override)
    assert outcome.status == 1
    assert outcome.err.count("\n") == 1
    assert message in outcome.err


def online(workspace: Any, tmp_path: Path, *more: str) -> list[str]:
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "the film", "answer": "good", "day": day} for day in range(4)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "name=new",
        f"actor.model.path={workspace.sft}",
        f"critic.path={workspace.reward}",
        f"prompts.path={prompts}",
        f"test_prompts.path={prompts}",
        "engine=plain",
        "micro_batch_size=4",
        "rollout.prompts=4",
        "rollout.sampling.max_new_tokens=4",
        "rollouts=1",
        *more,
    ]


def test_every_part_is_logged_and_their_weighted_sum_is_the_score(
    rlhf: Any, workspace: Any, tmp_path: Path, functions: str
) -> None:
    model = ("+reward@reward.parts.model=model", f"reward.parts.model.path={workspace.reward}")
    function = f"reward.parts.short.function={functions}:short"
    arguments = online(workspace, tmp_path, *MIXTURE, *model, function, "+reward.weights.model=-1.5")
    outcome = rlhf("rl", *arguments)
    assert outcome.status == 0, outcome.err
    (row,) = [json.loads(line) for line in (tmp_path / "runs/new/metrics.jsonl").read_text().splitlines()]
    for prefix in ("", "eval/"):
        right, short, model_score = (row[f"{prefix}reward/{name}"] for name in ("right", "short", "model"))
        assert short < 0
        assert row[f"{prefix}reward/score"] == pytest.approx(2.0 * right + 0.5 * short - 1.5 * model_score)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("late", r":late raised ZeroDivisionError: float division by zero ("),
        ("sleepy", r":sleepy took longer than 0.2 s over 4 responses ("),
    ],
)
def test_a_function_that_fails_ends_the_run_in_one_line(  # noqa: PLR0917 - fixtures
    rlhf: Any, workspace: Any, tmp_path: Path, functions: str, function: str, message: str
) -> None:
    reward = ("reward=function", f"reward.function={functions}:{function}", "reward.timeout_seconds=0.2")
    outcome = rlhf("rl", *online(workspace, tmp_path, *reward))
    assert outcome.status == 1
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("rlhf rl: ")]
    assert line.startswith(f"rlhf rl: {functions}{message}")
    assert f"{functions}.py:" in line
    if function == "late":
        assert " on response " in line
        assert "prompt 'the film'" in line


def test_responses_are_generated_and_evaluated_under_a_verifier(
    rlhf: Any, workspace: Any, tmp_path: Path
) -> None:
    prompts = online(workspace, tmp_path)[3].removeprefix("prompts.path=")
    shared = ("reward=format", "reward.pattern=.*", f"prompts.path={prompts}")
    made = rlhf("generate", "name=made", f"model.path={workspace.sft}", "decoding.max_new_tokens=4", *shared)
    assert made.status == 0, made.err
    rows = [json.loads(line) for line in (tmp_path / "runs/made/responses.jsonl").read_text().splitlines()]
    assert [row["score"] for row in rows] == [1.0] * 4
    report = rlhf(
        "evaluate", "name=report", f"reference.path={workspace.sft}", "sampling.max_new_tokens=4", *shared
    )
    assert report.status == 0, report.err
    assert "1.00 ± 0.00" in report.out


def test_a_verifier_without_its_column_says_so(rlhf: Any, workspace: Any, tmp_path: Path) -> None:
    arguments = online(workspace, tmp_path, "reward=exact_match", "reward.answer=city")
    outcome = rlhf("rl", *arguments)
    assert outcome.status == 1
    line = outcome.err.splitlines()[-1]
    assert "ExactMatch: the prompt's row has no column 'city', it has 'answer', 'day'" in line
    assert "on response 0, prompt 'the film'" in line


def test_help_shows_the_options_of_a_reward(rlhf: Any) -> None:
    assert COMMANDS
    printed = rlhf("rl", "--help", "reward=exact_match").out
    assert "mixture|" in printed.replace("\n", "") or "|mixture" in printed
    assert "Only what follows the last occurrence" in printed
