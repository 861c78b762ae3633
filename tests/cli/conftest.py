"""Commands run in process; one tiny supervised run and one tiny reward run for the whole session."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rlhf.cli.application import Command, run
from rlhf.cli.main import COMMANDS

TINY_MODEL = (
    "model=tiny_llama",
    "model.layers=1",
    "model.hidden=16",
    "model.heads=2",
    "model.intermediate=16",
    "model.context=32",
    "tokenizer.vocab_size=300",
)
SMALL_STEPS = ("engine=plain", "micro_batch_size=8", "cadence.checkpoint_every=1")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' + m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(kw_only=True)
class Outcome:
    """How a command ended."""

    status: int
    out: str
    err: str


@dataclass(kw_only=True)
class Workspace:
    """What every test of a command may read; refusals must leave it as it is."""

    folder: Path
    sft: Path
    """Run folder of a tiny language model."""
    reward: Path
    """Run folder of a tiny reward model that started from it."""
    demonstrations: Path
    pairs: Path
    prompts: Path
    chat_tokenizer: Path
    """The tiny model's tokenizer with ChatML, whose template trims what is said."""


@contextlib.contextmanager
def unchanged_process() -> Iterator[None]:
    """Whatever a command does to its process is undone: it usually has one of its own."""
    environment, argv, path, root = dict(os.environ), list(sys.argv), list(sys.path), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        sys.argv, sys.path[:], root.handlers[:] = argv, path, handlers
        root.setLevel(level)


def execute(folder: Path, name: str, *arguments: str) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    command = importlib.import_module(f"rlhf.cli.{name}").COMMAND
    streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with unchanged_process(), contextlib.chdir(folder), streams[0], streams[1]:
        status = run(name, command, list(arguments))
    return Outcome(status=status, out=out.getvalue(), err=err.getvalue())


def written(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("workspace")
    texts = [("the film", " is good"), ("a dull", " story , and long"), ("the sea", " is fine")]
    demonstrations = [{"prompt": prompt, "response": response} for prompt, response in texts] * 4
    pairs = [{"prompt": prompt, "chosen": " is good", "rejected": " is bad"} for prompt, _ in texts] * 4
    made = Workspace(
        folder=folder,
        sft=folder / "runs" / "sft",
        reward=folder / "runs" / "reward",
        demonstrations=written(folder / "demonstrations.jsonl", demonstrations),
        pairs=written(folder / "pairs.jsonl", pairs),
        prompts=written(folder / "prompts.jsonl", [{"prompt": prompt} for prompt, _ in texts * 4]),
        chat_tokenizer=folder / "chat_tokenizer",
    )
    sft = ("name=sft", f"data.path={made.demonstrations}", *TINY_MODEL, *SMALL_STEPS, "batch_size=6")
    reward = (
        "name=reward",
        f"model.path={made.sft}",
        f"data.path={made.pairs}",
        *SMALL_STEPS,
        "batch_size=6",
    )
    for name, arguments in (("sft", sft), ("reward", reward)):
        outcome = execute(folder, name, *arguments)
        assert outcome.status == 0, outcome.err
    save_chat_tokenizer(made)
    return made


def save_chat_tokenizer(workspace: Workspace) -> None:
    from rlhf.data.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(str(workspace.sft / "model"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(str(workspace.chat_tokenizer))


Run = Callable[..., Outcome]


@pytest.fixture
def rlhf(tmp_path: Path) -> Run:
    """``rlhf("sft", "name=…", …)`` as if called in an empty folder."""
    return lambda name, *arguments: execute(tmp_path, name, *arguments)


@pytest.fixture(scope="session")
def commands() -> dict[str, Command]:
    """Every command by name."""
    return {name: importlib.import_module(f"rlhf.cli.{name}").COMMAND for name in COMMANDS}


@pytest.fixture
def sft_arguments(workspace: Workspace) -> list[str]:
    """A supervised run that would succeed, to be spoilt by what is added."""
    return ["name=new", f"data.path={workspace.demonstrations}", *TINY_MODEL, *SMALL_STEPS, "batch_size=6"]


@pytest.fixture
def rl_arguments(workspace: Workspace) -> list[str]:
    """An online run of one rollout that would succeed."""
    return [
        "name=new",
        f"actor.model.path={workspace.sft}",
        f"reward.path={workspace.reward}",
        f"prompts.path={workspace.prompts}",
        *SMALL_STEPS,
        "rollout.prompts=4",
        "rollout.sampling.max_new_tokens=4",
        "rollouts=1",
    ]
