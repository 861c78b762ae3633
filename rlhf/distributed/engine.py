"""An engine trains one module: add up gradients over micro-batches and ranks, then step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlhf.distributed import named_state, runtime
from rlhf.distributed.collectives import world_size
from rlhf.distributed.compilation import passes
from rlhf.distributed.gathering import full_state, whole_tensors
from rlhf.distributed.named_state import Progress
from rlhf.distributed.watch import WATCH
from rlhf.tensor_file import TensorStream


class Engine(Protocol):
    """What a trainer needs of the thing that trains a module.

    All ranks call every method the same number of times, forwards included: under ZeRO-3 each gathers
    parameters from all.
    """

    name: str

    @property
    def module(self) -> nn.Module:
        """The wrapped module; under ZeRO-3 its parameters are empty outside a forward."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this rank's share of a sum over ranks and micro-batches.

        Any number of them, the same on every rank, comes before a step.
        """

    def step(self) -> float:
        """Clip, update, forget the gradients; the global gradient norm before clipping.

        Raises:
            FloatingPointError: the norm is not finite, on any rank. Neither parameters nor optimizer have
                moved, the gradients are forgotten, and the engine can go on.
        """

    def scale_lr(self, factor: float) -> None:
        """Set every parameter group's learning rate to ``factor`` times the one it was created with."""

    @property
    def lr(self) -> float:
        """Learning rate of the first parameter group."""

    def save(self, folder: Path) -> None:
        """Write what :meth:`load` needs to continue exactly; every rank calls it."""

    def load(self, folder: Path) -> None:
        """Continue where :meth:`save` of any engine on any number of ranks stopped; every rank calls it.

        With the same engine and ranks it is bit for bit the uninterrupted run, else up to rounding. Learning
        rates keep their scale; what else the optimizer was made with stays.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            ValueError: it is that of another model.
        """

    def weights(self) -> TensorStream:
        """The module's state dict, whole on every rank, one tensor at a time; every rank takes all of them.

        Of tied weights the first comes. What is trained is float32, whatever the engine computes in.
        """

    def state(self) -> dict[str, Tensor]:
        """The module's whole state dict on the CPU, on rank 0; ``{}`` elsewhere. Every rank calls it.

        Names that share a parameter (tied weights) share one tensor object.
        """


class LearningRates:
    """The parameter groups' learning rates, scaled together so that they keep their ratio."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._initial = [float(group["lr"]) for group in optimizer.param_groups]
        self.factor = 1.0

    def scale(self, factor: float) -> None:
        """Set each group to ``factor`` times its initial learning rate."""
        self.factor = factor
        for group, initial in zip(self._optimizer.param_groups, self._initial, strict=True):
            group["lr"] = initial * factor

    @property
    def first(self) -> float:
        """The first group's learning rate."""
        return float(self._optimizer.param_groups[0]["lr"])


class TorchEngine:
    """Plain torch: every rank holds the whole module and optimizer; gradients are summed over ranks."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        name: str,
        clip: float | None,
        compiled: bool = False,
    ) -> None:
        self.name = name
        self.module = module.to(runtime.device())
        self._optimizer = optimizer
        self._rates = LearningRates(optimizer)
        self._clip = clip
        self._passes = passes(module, name, compiled=compiled)
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._steps = 0
        if world_size() > 1:  # the ranks start from rank 0's weights, as under DeepSpeed
            with WATCH.meeting(f"the broadcast of the {name}'s weights"):
                for tensor in [*module.parameters(), *module.buffers()]:
                    dist.broadcast(tensor.data, src=0)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward."""
        with self._passes:
            return self.module(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Add this rank's share of a sum."""
        require_graph(self.name, loss)
        with self._passes:  # gradient checkpointing runs layers again
            loss.backward()

    def step(self) -> float:
        """Sum over ranks, clip, update; the norm before clipping."""
        with WATCH.meeting(f"the reduction of the {self.name}'s gradients"):
            for parameter in self._parameters:
                if parameter.grad is None:  # zero, as under DeepSpeed: another rank may have used it
                    parameter.grad = torch.zeros_like(parameter)
                if world_size() > 1:
                    dist.all_reduce(parameter.grad)
        norm = clip_gradients(self._parameters, self._clip)
        faulty = None if math.isfinite(norm) else first_not_finite(self.module)
        if math.isfinite(norm):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        require_finite(self.name, self._steps + 1, norm, faulty)
        self._steps += 1
        return norm

    def scale_lr(self, factor: float) -> None:
        """Set every group's learning rate to ``factor`` times its initial one."""
        self._rates.scale(factor)

    @property
    def lr(self) -> float:
        """Learning rate of the first parameter group."""
        return self._rates.first

    def save(self, folder: Path) -> None:
        """Module, optimizer and step, by name."""
        entries = named_state.plain_entries(self.module, self._optimizer, self._steps)
        named_state.save(folder, progress_of("plain torch", self._steps, self._rates), entries)

    def load(self, folder: Path) -> None:
        """Continue from :meth:`save`."""
        saved = named_state.read_progress(folder, self.name)
        named_state.renew(self._optimizer, self._parameters, saved.steps)
        entries = named_state.plain_entries(self.module, self._optimizer, saved.steps)
        named_state.load(folder, self.name, entries)
        self._steps = saved.steps
        self._rates.scale(saved.lr_scale)

    def weights(self) -> TensorStream:
        """The module's state dict."""
        return whole_tensors(self.module)

    def state(self) -> dict[str, Tensor]:
        """The module's state dict on the CPU, on rank 0."""
        return full_state(self.module)


def progress_of(kind: str, steps: int, rates: LearningRates) -> Progress:
    """What an engine notes of itself in a checkpoint."""
    return Progress(engine=kind, world_size=world_size(), steps=steps, lr_scale=rates.factor)


def cast_parameters(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module with its parameters in ``dtype``; buffers (statistics, rotary angles) keep theirs."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    return module


def clip_gradients(parameters: list[nn.Parameter], clip: float | None) -> float:
    """Scale the gradients so that their joint L2 norm is at most ``clip``; the norm before.

    Where it is not finite they stay as they are, for `first_not_finite`.
    """
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip is not None and clip < norm + 1e-6 and math.isfinite(norm):  # else it would multiply by 1
        torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return float(norm)


def require_graph(name: str, loss: Tensor) -> None:
    """Refuse a loss that depends on no parameter: ranks that skip a backward leave the others waiting."""
    if not loss.requires_grad:
        raise ValueError(
            f"{name}: backward needs a loss that depends on the module; a fully masked micro-batch must "
            "still go through the forward (torch.where(mask, loss, 0.0))"
        )


def require_finite(name: str, step: int, norm: float, faulty: str | None = None) -> None:
    """Refuse a gradient norm that is NaN or infinite; ``faulty`` is the parameter where it is, if known."""
    if not math.isfinite(norm):
        where = "" if faulty is None else f", first in that of {faulty}"
        raise FloatingPointError(
            f"{name}: gradient norm of step {step} is {norm}{where}; no parameter was changed"
        )


def first_not_finite(module: nn.Module) -> str | None:
    """The first parameter with a gradient that is not finite; None when their norm alone overflows."""
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return name
    return None
