"""What stands in a masked or padding slot changes nothing: through the real trainers, bit for bit.

Slots are found by introspection, so a new field of a batch is poisoned too.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import rlhf.batch
import rlhf.ops
from rlhf.algorithms.advantages import WhitenedGroupDeviation
from rlhf.algorithms.corrections import Level, Masked
from rlhf.algorithms.kl import ExactKLInLoss
from rlhf.algorithms.mixtures import Constant
from rlhf.algorithms.preference_losses import DPO, ORPO, Unlikelihood
from rlhf.batch import (
    ComparisonBatch,
    Comparisons,
    Experience,
    LabelledBatch,
    PreferenceBatch,
    Prefixes,
    PromptBatch,
    Rollout,
    Rows,
    SequenceBatch,
)
from rlhf.trainers.distillation import DistillationTrainer
from rlhf.trainers.policy_gradient import PolicyGradientTrainer
from rlhf.trainers.preference import PreferenceTrainer
from rlhf.trainers.rollout_metrics import Measured

FILLS = [math.nan, 1e9, -1e9]
IDS = {math.nan: 13, 1e9: 10**9, -1e9: -(10**9)}
"""Token ids in place of a fill: one past the vocabulary of 13, and ids far outside it."""


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    from tests.trainers import toy as module

    return module


def masks_of(batch: Any) -> list[Tensor]:
    """Bool tensors that say which slots of a batch are real; where two have one shape the first rules."""
    inner = getattr(batch, "rollout", batch)
    names = ("attention_mask", "mask", "prompt_mask", "compared")
    return [getattr(inner, name) for name in names if hasattr(inner, name)]


def poisoned(batch: Any, fill: float, count: list[str]) -> Any:
    """The batch with ``fill`` in every slot that is not real; ``count`` notes the fields that had any."""
    changes: dict[str, Any] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Rows):
            changes[field.name] = poisoned(value, fill, count)
        elif isinstance(value, Tensor) and value.dim() > 1 and value.dtype != torch.bool:
            where = f"{type(batch).__name__}.{field.name}"
            real = [mask for mask in masks_of(batch) if mask.shape == value.shape]
            assert real, f"no mask says which slots of {where} are padding"
            if not real[0].all():
                count.append(where)
            bad = fill if value.is_floating_point() else IDS[fill]
            changes[field.name] = torch.where(real[0], value, torch.full_like(value, bad))
    return replace(batch, **changes)


def tensors(kind: type) -> set[str]:
    """The fields of a batch type that hold a number or an id for each position."""
    source = inspect.getsource(kind)
    return {
        f"{kind.__name__}.{field.name}"
        for field in fields(kind)  # type: ignore[arg-type]
        if f"{field.name}: Tensor" in source and f"{field.name}: Tensor  # (B,)" not in source
        if " bool" not in source.split(f"{field.name}: Tensor")[1].split("\n")[0]
    }


class Poisoning:
    """A function whose result is poisoned."""

    def __init__(self, function: Callable[..., Any], fill: float, count: list[str]) -> None:
        self.function, self.fill, self.count = function, fill, count

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return poisoned(self.function(*args, **kwargs), self.fill, self.count)


class Set:
    """A data set whose batches are poisoned."""

    def __init__(self, rows: Any, fill: float, count: list[str]) -> None:
        self.rows, self.batch = rows, Poisoning(rows.batch, fill, count)

    def __len__(self) -> int:
        return len(self.rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rows, name)


def poison(trainer: Any, fill: float) -> list[str]:
    """Poison every batch that the trainer will see; the fields that were, once it has run."""
    count: list[str] = []
    if isinstance(trainer, PreferenceTrainer):
        for feedback in (trainer.train, trainer.test):
            feedback.rows = Set(feedback.rows, fill, count)
        return count
    if hasattr(trainer, "engine"):
        trainer.train, trainer.test = Set(trainer.train, fill, count), Set(trainer.test, fill, count)
        return count
    for prompts in (trainer.train, trainer.test):
        prompts.rows = Set(prompts.rows, fill, count)
    makers = [(trainer, "collect")]
    if isinstance(trainer, PolicyGradientTrainer):
        makers = [(trainer.collector, "sample"), (trainer, "measure"), (trainer, "estimate")]
        if trainer.updater.pretraining is not None:
            trainer.updater.pretraining._rows = Set(trainer.updater.pretraining._rows, fill, count)
    for owner, name in makers:
        setattr(owner, name, Poisoning(getattr(owner, name), fill, count))
    return count


def engines(trainer: Any) -> list[Any]:
    """Those that learn."""
    if hasattr(trainer, "engine"):
        return [trainer.engine]
    if isinstance(trainer, DistillationTrainer):
        return [trainer.models.student]
    return [engine for engine in (trainer.models.actor, trainer.models.critic) if engine is not None]


def ran(toy: ModuleType, trainer: Any, seen: list[Any]) -> list[Any]:
    """All that two steps and an evaluation leave: metrics, gradients' norms, parameters, samples."""
    metrics = [trainer.step(), trainer.step(), trainer.evaluate()]
    found: list[Any] = [one.maxima for one in metrics]
    found += [
        {name: pair for name, pair in one.pairs.items() if not name.startswith(("time/", "throughput/"))}
        for one in metrics
    ]
    for one in found[:3]:
        one.pop("memory/peak_bytes", None)
    learnt = toy.parameters(*engines(trainer)).values()
    return [*found, trainer.samples(), [tensor.tolist() for tensor in learnt], seen]


PREFERENCES = {"dpo": DPO(), "orpo": ORPO(), "unlikelihood": Unlikelihood()}
"""Losses that read sums, means and single tokens."""


def build(toy: ModuleType, stage: str) -> tuple[Any, list[Any]]:
    """A trainer of the stage, and a list that will hold every gradient that it steps on."""
    if stage == "supervised":
        trainer = toy.supervised(test=toy.supervised_set(5, "held out"))
    elif stage == "reward_model":
        trainer = toy.reward_model(train=toy.ranking_set(), test=toy.ranking_set(5, "held out"))
    elif stage == "kto":
        trainer = toy.kto(test=toy.labelled_set(5, "held out"), sft_coef=0.1)
    elif stage == "distillation":
        trainer = toy.distillation(
            test=toy.prompt_set(4, "held out"), mixture=Constant(beta=0.5), keep_rounds=None
        )
    elif stage in PREFERENCES:
        trainer = toy.preference(PREFERENCES[stage], test=toy.preference_set(5, "held out"), sft_coef=0.1)
    elif stage == "everything around the loss":
        algorithm = toy.grpo(
            advantage=WhitenedGroupDeviation(),
            kl=ExactKLInLoss(),
            dynamic_sampling=3,
            entropy_coef=0.1,
            ptx_coef=0.3,
            overlong_filter=True,
            correction=Masked(level=Level.sequence, low=0.1, high=10.0),
        )
        trainer = toy.policy_gradient(
            algorithm,
            reference=toy.actor("reference"),
            samples=3,
            prompts=4,
            test=toy.prompt_set(4, "held out"),
            ema_decay=0.5,
            pretraining=toy.supervised_set(),
        )
    else:
        trainer = toy.policy_gradient(
            getattr(toy, stage.removesuffix(" without exact KL"))(),
            reference=toy.actor("reference"),
            samples=2,
            prompts=4,
            exact_kl="without" not in stage,
            test=toy.prompt_set(4, "held out"),
        )
    seen: list[Any] = []
    for engine in engines(trainer):
        for parameter in engine.module.parameters():
            parameter.register_hook(lambda gradient: seen.append(gradient.double().sum().item()))
    return trainer, seen


REACHED = {
    **dict.fromkeys((*PREFERENCES, "kto"), tensors(SequenceBatch)),
    "supervised": tensors(SequenceBatch),
    "reward_model": tensors(ComparisonBatch) | tensors(Comparisons),
    "distillation": tensors(PromptBatch) | tensors(Rollout),
    "ppo": tensors(PromptBatch) | tensors(Rollout) | tensors(Experience) | tensors(Measured),
    "ppo without exact KL": tensors(PromptBatch) | tensors(Rollout) | tensors(Experience),
    "rloo": tensors(PromptBatch) | tensors(Rollout) | {"Experience.advantages", "Measured.rewards"},
    "grpo": tensors(PromptBatch) | tensors(Rollout) | {"Experience.advantages", "Measured.rewards"},
    "everything around the loss": tensors(SequenceBatch) | tensors(PromptBatch) | tensors(Rollout),
}
"""What must have had a slot to poison."""


def test_every_batch_type_is_poisoned_somewhere() -> None:
    kinds = {
        kind.__name__
        for _, kind in inspect.getmembers(rlhf.batch, inspect.isclass)
        if issubclass(kind, Rows) and kind is not Rows
    }
    judged = {"ComparisonBatch", "Comparisons"}
    outer = {"PreferenceBatch", "LabelledBatch", "Prefixes"}
    assert kinds == {"SequenceBatch", "PromptBatch", "Rollout", "Experience"} | judged | outer
    assert {name.split(".")[0] for names in REACHED.values() for name in names} | outer == (
        kinds | {"Measured"}
    )
    assert not tensors(PreferenceBatch)  # but those of its two sides
    assert not tensors(LabelledBatch)
    assert not tensors(Prefixes)
    assert "Experience.old_values" in tensors(Experience)
    assert "Measured.exact_kl" in tensors(Measured)
    assert "Rollout.tokens" in tensors(Rollout)


@pytest.mark.parametrize("stage", REACHED)
def test_poisoned_masked_slots_change_nothing(toy: ModuleType, stage: str) -> None:
    trainer, seen = build(toy, stage)
    clean = ran(toy, trainer, seen)
    assert all(math.isfinite(number) for number in seen)
    assert len(seen) > 10
    for fill in FILLS:
        trainer, seen = build(toy, stage)
        count = poison(trainer, fill)
        dirty = ran(toy, trainer, seen)
        assert set(count) >= REACHED[stage]
        for one, other in zip(clean, dirty, strict=True):
            assert one == other, fill


# Every function of ops


def functions() -> Iterator[Any]:
    """(name, function) of every public function in rlhf/ops that takes a mask."""
    for file in sorted(Path(rlhf.ops.__file__).parent.glob("[a-z]*.py")):
        module = importlib.import_module(f"rlhf.ops.{file.stem}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            own = function.__module__ == module.__name__ and not name.startswith("_")
            if own and "mask" in inspect.signature(function).parameters:
                yield pytest.param(function, id=f"{file.stem}.{name}")


MASK = torch.arange(4) < torch.tensor([[4], [2], [3], [1]])
OTHERS: dict[str, Any] = {
    "mask": MASK,
    "total": lambda tensor: tensor,
    "scores": torch.tensor([1.0, 2.0, 3.0, 4.0]),
    "ended": torch.tensor([True, True, False, True]),
    "group": torch.tensor([0, 1, 0, 1]),
    "high": 2.0,
}
"""Arguments that are not a (B, T) tensor; a number that is not here is ½."""


def outputs(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, tuple):
        return list(result)
    return [getattr(result, field.name) for field in fields(result)]


@pytest.mark.parametrize("function", functions())
@pytest.mark.parametrize("fill", FILLS)
def test_no_op_reads_a_masked_slot(function: Any, fill: float) -> None:
    wanted = inspect.signature(function).parameters
    names = [name for name, one in wanted.items() if name not in OTHERS and one.annotation == "Tensor"]
    kept = {name: OTHERS.get(name, 0.5) for name in wanted if name not in names}
    found = []
    for padding in (0.0, fill):
        generator = torch.Generator().manual_seed(0)
        drawn = {name: torch.randn(4, 4, generator=generator) for name in names}
        arguments = {name: torch.where(MASK, x, padding).requires_grad_() for name, x in drawn.items()}
        results = outputs(function(**arguments, **kept))
        differentiable = [result.sum() for result in results if result.requires_grad]
        if differentiable:
            torch.stack([result.double() for result in differentiable]).sum().backward()
        gradients = [argument.grad for argument in arguments.values()]
        found.append([*results, *(gradient for gradient in gradients if gradient is not None)])
    for clean, dirty in zip(*found, strict=True):
        assert torch.equal(clean, dirty)
        assert clean.isfinite().all()
