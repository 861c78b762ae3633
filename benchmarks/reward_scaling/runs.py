"""What is trained: language models of several sizes, and reward models on so many comparisons."""

from __future__ import annotations

import contextlib
import importlib
import io
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from rlhf.cli.application import run
from rlhf.data.tokenizers import load_tokenizer
from rlhf.models.loading import load_actor
from rlhf.models.saving import save_model
from rlhf.models.sources import TinyLlama
from rlhf.seeding import generator

SHAPES = {"small": (32, 96), "middle": (64, 192), "quickstart": (128, 384)}
"""Width and MLP width of three layers and four heads; the last is the quick start's supervised model."""
PASSES = {500: 4, 2000: 2, 8000: 1}
"""Comparisons, and epochs over them: fewer comparisons are seen more often, or nothing would be learnt."""
STEP = (
    *("engine=plain", "batch_size=32", "micro_batch_size=32"),
    *("optimizer.weight_decay=0.1", "schedule=cosine"),
    *("cadence.evaluate_every=0", "cadence.checkpoint_every=0"),
)
RATE = ("optimizer.lr=1e-3", "schedule.warmup=0.1", "loss.center=0")
"""One rate for both beginnings, between what suited each best on 649 pairs of the part ``prompts``, which
is neither trained on nor reported: see docs/reward_evaluation.md."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Run:
    """One reward model."""

    size: str
    start: str
    """``sft`` or ``scratch``."""
    comparisons: int
    seed: int

    @property
    def name(self) -> str:
        """Its folder among the others."""
        return f"{self.size}_{self.start}_{self.comparisons}_{self.seed}"


def all_runs(seeds: int) -> list[Run]:
    """Every size from the supervised model, the largest from nothing too; seeds outermost."""
    largest = list(SHAPES)[-1]
    return [
        Run(size=size, start=start, comparisons=comparisons, seed=seed)
        for seed in range(seeds)
        for comparisons in PASSES
        for size in reversed(SHAPES)
        for start in ("sft", "scratch")
        if start == "sft" or size == largest
    ]


def train(one: Run, folder: Path, quickstart: Path) -> Path:
    """The run's reward model, trained unless it is there; its comparisons are a random part of all."""
    model = folder / one.name
    if not (model / "model").is_dir():
        start = (
            _supervised(one.size, folder, quickstart)
            if one.start == "sft"
            else _random(one, folder, quickstart)
        )
        data = sample(one, folder)
        passes = PASSES[one.comparisons]
        _command(
            "reward",
            model,
            f"model.path={start}",
            f"data.path={data}",
            f"epochs={passes}",
            f"seed={one.seed}",
            *RATE,
        )
    return model


def parameters(model: Path) -> int:
    """Of the network, its head included."""
    from safetensors import safe_open

    with safe_open(model / "model" / "model.safetensors", framework="pt") as file:
        return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118


def _supervised(size: str, folder: Path, quickstart: Path) -> Path:
    """A language model of that size, trained as the quick start's."""
    if size == "quickstart":
        return quickstart / "sft"
    model = folder / f"sft_{size}"
    if not (model / "model").is_dir():
        hidden, intermediate = SHAPES[size]
        _command(
            "sft",
            model,
            *(
                "experiment=quickstart/sft",
                f"data.path={folder}/data/supervised_train.jsonl",
                "test_data.path=null",
            ),
            *(
                f"tokenizer.path={quickstart}/sft/model",
                f"model.hidden={hidden}",
                f"model.intermediate={intermediate}",
            ),
        )
    return model


def _random(one: Run, folder: Path, quickstart: Path) -> Path:
    """Random weights of that size and seed."""
    place = folder / f"random_{one.size}_{one.seed}"
    if not place.is_dir():
        hidden, intermediate = SHAPES[one.size]
        shape = TinyLlama(layers=3, hidden=hidden, heads=4, intermediate=intermediate, context=256)
        tokenizer = load_tokenizer(str(quickstart / "sft" / "model"))
        actor = load_actor(shape, tokenizer, generator=generator(one.seed, "weights"))
        save_model(actor, actor.state_dict(), tokenizer, place)
    return place


def sample(one: Run, folder: Path) -> Path:
    """So many of all comparisons, drawn by the seed; fewer are a part of more."""
    lines = (
        (folder / "data" / "preferences_train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    )
    order = torch.randperm(len(lines), generator=generator(one.seed, "comparisons"))[: one.comparisons]
    file = folder / "data" / f"comparisons_{one.comparisons}_{one.seed}.jsonl"
    file.write_text("".join(lines[row] for row in order.tolist()), encoding="utf-8")
    return file


def _command(name: str, folder: Path, *arguments: str) -> None:
    """``rlhf NAME`` in this process.

    Raises:
        RuntimeError: it failed; with its last line.
    """
    shutil.rmtree(folder, ignore_errors=True)  # what a run that was stopped has left
    said = io.StringIO()
    command = importlib.import_module(f"rlhf.cli.{name}").COMMAND
    words = [f"hydra.run.dir={folder}", f"name={folder.name}", *STEP, *arguments]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = run(name, command, words)
    if status:
        raise RuntimeError((said.getvalue().strip().splitlines() or ["no message"])[-1])
