"""The models of a command, without numbers, and what an engine holds of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from rlhf.distributed.engine import cast_parameters
from rlhf.distributed.engine_config import EngineConfig, ZeRO
from rlhf.distributed.footprint import Footprint, footprint, inference_bytes
from rlhf.models.actor import Actor
from rlhf.models.scalar import ScalarModel
from rlhf.planning.held import Held
from rlhf.planning.memory_plan import Term
from rlhf.planning.passes import Wrapper


@dataclass(kw_only=True, slots=True)
class Machine:
    """What a command would run on."""

    ranks: int
    device: str
    """``cpu`` or ``cuda``."""

    @property
    def on_gpu(self) -> bool:
        """Whether models compute on one."""
        return self.device == "cuda"


W = TypeVar("W", Actor, ScalarModel)


class Trained(Generic[W]):
    """A model in a training engine."""

    def __init__(self, name: str, wrapper: W, engine: EngineConfig, machine: Machine) -> None:
        """Take the model, whose parameters get the engine's precision."""
        self.name, self.engine = name, engine
        self.loading = whole_bytes(wrapper)
        cast_parameters(wrapper, engine.dtype)
        self.wrapper: W = wrapper.train()
        self.footprint: Footprint = footprint(engine, wrapper, machine.ranks)
        self._offloads = machine.on_gpu and isinstance(engine, ZeRO) and engine.offload_optimizer
        self._lends = machine.on_gpu and isinstance(engine, ZeRO) and engine.offload_parameters
        if not self.keeps_gradients:
            for parameter in wrapper.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(_forget)

    @property
    def keeps_gradients(self) -> bool:
        """Whether a parameter's gradient stays where torch puts it until the step."""
        return not isinstance(self.engine, ZeRO) or self.engine.stage < 2

    def always(self) -> list[Term]:
        """Between steps, from the first one on."""
        own = self.footprint
        terms: list[Term] = [
            self._term("weights", own.weights, offloaded=self._lends),
            self._term("master weights", own.master_weights, offloaded=self._offloads),
            self._term("moments", own.moments, offloaded=self._offloads),
            self._term("sums of gradients", own.sums, offloaded=self._offloads),
            self._term("buffers of the offload", own.offload, offloaded=self._offloads),
        ]
        return [*terms, self._buckets()] if self._stage == 3 else terms

    def gradients(self) -> Term:
        """From the first backward to the step."""
        return self._term("gradients", self.footprint.gradients)

    def updating(self) -> list[Term]:
        """Beside :meth:`always`, in passes with gradient."""
        return self.forward() if self._stage == 3 else [self.gradients(), self._buckets()]

    def stepping(self) -> list[Term]:
        """Beside :meth:`always`, in a step; at stage 1 gradients have moved to the buckets."""
        step = self._term("step", self.footprint.step)
        moved = self._stage == 1 and self.footprint.buckets
        return [self._buckets() if moved else self.gradients(), step]

    def _buckets(self) -> Term:
        return self._term("reduction buckets", self.footprint.buckets)

    @property
    def _stage(self) -> int | None:
        return self.engine.stage if isinstance(self.engine, ZeRO) else None

    def forward(self) -> list[Term]:
        """Beside :meth:`always`, in passes without gradient."""
        return [self._term("gathered weights", self.footprint.gathered)]

    def _term(self, part: str, size: int, *, offloaded: bool = False) -> Term:
        return Term(owner=self.name, part=part, bytes=size, offloaded=offloaded)


class Frozen(Generic[W]):
    """A model that is only run forward."""

    def __init__(self, name: str, wrapper: W, engine: EngineConfig | None, machine: Machine) -> None:
        """Take the model; None leaves it whole, in float32."""
        self.name = name
        self.loading = whole_bytes(wrapper)
        if engine is not None:
            cast_parameters(wrapper, engine.dtype)
        self.wrapper: W = wrapper.requires_grad_(False).eval()
        self._bytes, self._gathered = (
            (self.loading, 0) if engine is None else inference_bytes(engine, wrapper, machine.ranks)
        )
        lends = isinstance(engine, ZeRO) and engine.offload_parameters
        self._offloaded = machine.on_gpu and lends

    def always(self) -> list[Term]:
        """Between forwards."""
        return [Term(owner=self.name, part="weights", bytes=self._bytes, offloaded=self._offloaded)]

    def forward(self) -> list[Term]:
        """Beside that, in one."""
        return [Term(owner=self.name, part="gathered weights", bytes=self._gathered)]


AnyTrained = Trained[Any]
AnyFrozen = Frozen[Any]


def whole_bytes(wrapper: Wrapper) -> int:
    """Of parameters and buffers as they are, tied ones once."""
    return sum(tensor.nbytes for tensor in (*wrapper.parameters(), *wrapper.buffers()))


def _forget(parameter: torch.Tensor) -> None:
    """What ZeRO does with a gradient: it goes to the bucket."""
    parameter.grad = None


@torch.no_grad()
def forward_bytes(run: Callable[[], object]) -> int:
    """The most that a pass without gradient holds."""
    with Held() as held:
        kept = run()
    del kept
    return held.peak
