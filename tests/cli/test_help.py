"""``--help`` lists what can be set, with what it means and what can be chosen."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from omegaconf import OmegaConf

from rlhf.cli.application import Command
from rlhf.cli.composition import compose, keys
from rlhf.cli.help import describe, documentation
from rlhf.cli.main import COMMANDS
from rlhf.config import register

FREE = ("policies.", "settings.", "start.", "first.", "each_round.", "last.")
"""What users and recipes name themselves."""


@dataclass(kw_only=True, slots=True)
class Parent:
    inherited: int = 1
    """Of the parent,
    over two lines."""
    overridden: int = 2
    """Of the parent."""


@dataclass(kw_only=True, slots=True)
class Child(Parent):
    bare: int = 3
    overridden: int = 4
    """Of the child."""


def test_documentation_is_the_literal_under_the_field() -> None:
    expected = {"inherited": "Of the parent, over two lines.", "overridden": "Of the child.", "bare": ""}
    assert documentation(Child) == expected


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_every_key_with_its_comment(name: str, commands: dict[str, Command]) -> None:
    register({name: commands[name].schema})
    listed = described(describe(name, []))
    raw = compose(name)
    assert list(listed) == keys(raw)
    bare = [key for key, comment in listed.items() if not comment]
    assert [key for key in bare if not key.startswith(FREE)] == []


def described(text: str) -> dict[str, str]:
    """Comments by dotted key, read from the indentation of the text."""
    listed: dict[str, str] = {}
    path: list[str] = []
    for line in text.partition("\nKeys:\n")[2].splitlines():
        if line.strip():
            depth = (len(line) - len(line.lstrip())) // 2 - 1
            path = [*path[:depth], line.split(":")[0].strip()]
            listed[".".join(path)] = line.partition(" # ")[2]
    return listed


def test_help_follows_the_choices_made(commands: dict[str, Command]) -> None:
    register({"rl": commands["rl"].schema})
    overrides = ["algorithm=rloo", "rollout.samples=2", "seed=7"]
    listed = described(describe("rl", overrides))
    assert "algorithm.aggregation.length" in listed
    assert "algorithm.advantage.lam" not in listed
    assert "  seed: 7 " in describe("rl", overrides)


def test_help_names_the_options_of_every_group(commands: dict[str, Command]) -> None:
    register({"rl": commands["rl"].schema})
    choices = describe("rl", []).partition("Choices:\n")[2].partition("\n\n")[0].splitlines()
    options = dict(line.strip().split("=") for line in choices)
    assert {"ppo", "grpo", "rloo"} <= set(options["algorithm"].split("|"))
    assert {"gae", "group_relative", "leave_one_out"} <= set(options["algorithm/advantage"].split("|"))
    assert "quickstart/rl" in options["experiment"].split("|")
    assert not {"loss", "model"} & options.keys()  # other commands choose them


def test_value_that_is_missing_is_shown_as_such(commands: dict[str, Command]) -> None:
    register({"score": commands["score"].schema})
    assert OmegaConf.is_missing(compose("score").reward, "path")
    assert "    path: ???" in describe("score", [])
