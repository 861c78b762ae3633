"""The phases in which models are read and in which they learn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from rlhf.planning.held import Held
from rlhf.planning.memory_plan import MemoryPlan, Term
from rlhf.planning.roles import AnyFrozen, AnyTrained, Trained

Loss = Callable[[], Tensor]
"""A forward pass: something with a graph."""


def rehearsed(losses: Sequence[Loss], models: Sequence[AnyTrained], passes: int) -> int:
    """The most that passes of one step hold, gradients that stay where torch puts them included.

    A second pass finds the gradients of the first; a third one finds no more.

    Args:
        losses: the passes of one micro-batch, one after the other, each with its backward.
        models: those that learn.
        passes: micro-batches of the step.
    """
    with Held() as held:
        for _ in range(min(passes, 2)):
            for loss in losses:
                loss().sum().backward()
    forget(models)
    return held.peak


def forget(models: Sequence[AnyTrained]) -> None:
    """Let gradients go."""
    for model in models:
        model.wrapper.zero_grad(set_to_none=True)


def update_terms(models: Sequence[AnyTrained], peak: int) -> list[Term]:
    """Of passes that hold ``peak``, with the gradients that are counted in it told apart."""
    counted = sum(model.gradients().bytes for model in models if model.keeps_gradients)
    terms = [term for model in models for term in model.updating()]
    return [*terms, Term(owner="passes", part="activations, head", bytes=max(peak - counted, 0))]


def add_update(plan: MemoryPlan, always: Iterable[Term], models: Sequence[AnyTrained], peak: int) -> None:
    """The phases of the passes and of the step, which engines make one after the other."""
    held = list(always)
    plan.add("update", held, update_terms(models, peak))
    largest = max(models, key=lambda model: sum(term.bytes for term in model.stepping()))
    others = [model.gradients() for model in models if model is not largest and model.keeps_gradients]
    plan.add("step", held, others, largest.stepping())


def add_loading(
    plan: MemoryPlan, models: Sequence[AnyTrained | AnyFrozen], copies: Iterable[Term] = ()
) -> None:
    """Models are read in float32, one after the other, and what trains is given to its engine last."""
    terms = [Term(owner=model.name, part="weights", bytes=model.loading) for model in models]
    making = [
        Term(owner=model.name, part="making its engine", bytes=model.footprint.start)
        for model in models
        if isinstance(model, Trained)
    ]
    plan.add("load", terms, copies, making, on_host=True)


def add_writing(plan: MemoryPlan, always: Iterable[Term], models: Sequence[AnyTrained]) -> None:
    """Checkpoint and export: one whole tensor at a time, of adapted weights with what is added to it."""
    size = max(_written(model) for model in models)
    plan.add("writing", always, [Term(owner="writing", part="one tensor", bytes=size)])


def _written(model: AnyTrained) -> int:
    largest = 4 * max(parameter.numel() for parameter in model.wrapper.parameters())
    return 3 * largest if model.wrapper.lora is not None else largest
