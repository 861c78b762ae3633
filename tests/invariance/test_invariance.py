"""How a step is laid out does not appear in its gradient: the cheap part of the matrix (`__main__.py`).

One process whole, in float64. On two ranks what `tests/trainers/test_two_ranks.py` does not show with the
real optimiser: float64, the other ZeRO stages, and ranks that hold unequal numbers of tokens, or none.
"""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.invariance import __main__ as matrix

runs = matrix.runs
ALONE = matrix.one_process("float64")
FAULTS = {fault.options["fault"]: fault for fault in matrix.mistakes()}
CHEAP = {  # of the lines on two ranks, with the model that stands for both
    ("float64", "usual"): "gpt2",
    ("float64", "uneven"): "llama",
    ("float64", "masked"): "gpt2",
    ("float64", "short"): "llama",
    ("zero0", "uneven"): "llama",
    ("zero1", "uneven"): "gpt2",
    ("zero2", "uneven"): "gpt2",
    ("zero2", "masked"): "llama",
    ("zero3", "masked"): "gpt2",
    ("zero3", "short"): "llama",
}


def cheap() -> dict[str, list[Any]]:
    """The runs that two ranks make here, by line."""
    found: dict[str, list[Any]] = {}
    for (engine, data), model in CHEAP.items():
        (line,) = matrix.two_ranks(engine, [data])
        found[line.label] = [run for run in line.runs if run.model == model]
    for each in matrix.packed_on_two_ranks():
        found[each.label] = [
            run for run in each.runs if run.model == ("gpt2" if "plain" in each.label else "llama")
        ]
    for fault, stages in {"rank": runs.STAGES, "average": ("sft",), "whiten": ("ppo",)}.items():
        of_all = FAULTS[fault].runs
        found[fault] = [run for run in of_all if run.model == "llama" and run.stage in stages]
    return found


def work(_folder: Path) -> dict[str, Any]:
    """What each of two ranks finds: the gradients, and how many tokens it held."""
    found: dict[str, Any] = {repr(run): runs.gradient(run) for each in cheap().values() for run in each}
    for data in ("uneven", "masked"):
        found[data] = [runs.tokens(runs.Run(stage=stage, data=data)) for stage in ("sft", "ppo", "grpo")]
    return found


@pytest.fixture(scope="module")
def found(two_ranks: Callable[[str, str], list[Any]]) -> list[Any]:
    return two_ranks(__file__, "work")


@pytest.fixture(scope="module")
def reference() -> Callable[[Any], dict[str, torch.Tensor]]:
    """The gradient that a run ought to have; each is computed once."""
    known: dict[Any, dict[str, torch.Tensor]] = {}

    def of(run: Any) -> dict[str, torch.Tensor]:
        if run.reference not in known:
            known[run.reference] = runs.gradient(run.reference)
        return known[run.reference]

    return of


@pytest.mark.parametrize(("model", "stage"), matrix.COLUMNS)
@pytest.mark.parametrize("line", ALONE, ids=lambda line: line.label)
def test_the_layout_of_a_step_does_not_change_its_gradient(
    reference: Callable[[Any], Any], line: Any, model: str, stage: str
) -> None:
    run = line.run(model, stage)
    if run is not None:
        assert runs.difference(runs.gradient(run), reference(run)) <= matrix.TOLERANCE["float64"]


@pytest.mark.parametrize("label", [label for label in cheap() if label not in FAULTS])
def test_two_ranks_have_the_gradient_of_one(
    found: list[Any], reference: Callable[[Any], Any], label: str
) -> None:
    for run in cheap()[label]:
        dtype = "float64" if run.engine == "float64" else "float32"
        gap = runs.difference(found[0][repr(run)], reference(run))
        assert gap <= matrix.TOLERANCE[dtype], run
        norms = found[1][repr(run)]  # rank 1 hears of these, and rank 0 alone of the rest
        assert norms
        own = {name: reference(run)[name] for name in norms}
        assert runs.difference(norms, own) <= matrix.TOLERANCE[dtype], run


def test_the_ranks_hold_as_unequal_parts_as_the_lines_say(found: list[Any]) -> None:
    for first, second in zip(found[0]["uneven"], found[1]["uneven"], strict=True):
        assert 0 < second < first / 3
    assert min(found[0]["masked"]) > 0
    assert found[1]["masked"] == [0, 0, 0]


@pytest.mark.parametrize(("model", "stage"), matrix.COLUMNS)
def test_a_mean_of_micro_batch_means_is_seen(reference: Callable[[Any], Any], model: str, stage: str) -> None:
    run = FAULTS["micro"].run(model, stage)
    assert runs.difference(runs.gradient(run), reference(run)) > matrix.SEEN


@pytest.mark.parametrize("fault", ["rank", "average", "whiten"])
def test_what_a_rank_computes_of_its_own_rows_alone_is_seen(
    found: list[Any], reference: Callable[[Any], Any], fault: str
) -> None:
    for run in cheap()[fault]:
        assert runs.difference(found[0][repr(run)], reference(run)) > matrix.SEEN, run


@pytest.mark.parametrize(("model", "stage"), matrix.COLUMNS)
def test_every_trainable_parameter_gets_a_gradient_and_moves(
    reference: Callable[[Any], Any], model: str, stage: str
) -> None:
    gradient = reference(runs.Run(stage=stage, model=model, engine="float64"))
    for name, value in gradient.items():
        assert (value != 0).any() or name == runs.CANCELS, name
    trainer = runs.build(runs.Run(stage=stage, model=model), descent=False)  # with the product's AdamW
    before = runs.toy.parameters(*runs.engines(trainer))
    assert len(before) > 10
    trainer.step()
    for name, value in runs.toy.parameters(*runs.engines(trainer)).items():
        assert not torch.equal(value, before[name]), name
    assert all(p.requires_grad for engine in runs.engines(trainer) for p in engine.module.parameters())


@pytest.mark.parametrize(("model", "stage"), matrix.COLUMNS)
def test_gradient_checkpointing_computes_each_layer_again(model: str, stage: str) -> None:
    layer = "model.model.layers.0.mlp" if model == "llama" else "model.transformer.h.0.mlp"
    calls: list[list[int]] = []
    for change in ("", "recompute"):
        trainer = runs.build(runs.Run(stage=stage, model=model, change=change))
        counts = [0 for _ in runs.engines(trainer)]
        for i, engine in enumerate(runs.engines(trainer)):
            engine.module.get_submodule(layer).register_forward_pre_hook(partial(_count, counts, i))
        trainer.step()
        calls.append(counts)
    assert calls[1] == [count + 1 for count in calls[0]]  # one backward pass over the only micro-batch


def _count(counts: list[int], i: int, *_: Any) -> None:
    counts[i] += 1


@pytest.mark.slow
def test_the_whole_matrix_is_within_bounds() -> None:
    command = [sys.executable, "-m", "tests.invariance"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n0 of " in done.stdout
