"""The choice of engine: a component that wraps a module for training or for inference."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import torch
from torch import nn

from rlhf.distributed import runtime
from rlhf.distributed.compilation import passes
from rlhf.distributed.engine import Engine, TorchEngine, cast_parameters
from rlhf.distributed.watch import WATCH


class Precision(Enum):
    """The dtype of weights and activations; optimizer states and master weights are always float32."""

    float32 = "float32"
    bfloat16 = "bfloat16"

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype."""
        return torch.bfloat16 if self is Precision.bfloat16 else torch.float32


class Inference(Protocol):
    """A frozen module that is only run forward, without a graph."""

    @property
    def module(self) -> nn.Module:
        """The wrapped module."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward, without a graph."""

    def release(self) -> None:
        """Give back the memory of the weights: the module will not be run any more."""


@dataclass(kw_only=True, slots=True)
class EngineConfig(ABC):
    """How modules are trained and run."""

    clip: float | None = 1.0
    """Largest global L2 norm of a step's gradient, over all ranks and micro-batches; null for no clipping."""

    compile: bool = False
    """Run the layers through torch.compile, but for the sampler; not at stage 3; needs a C++ compiler."""

    def __post_init__(self) -> None:
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"{type(self).__name__}.clip must be positive or null, got {self.clip}")

    @property
    @abstractmethod
    def splits_parameters(self) -> bool:
        """Whether each rank holds a part of the parameters only, so that sampling needs a gathered copy."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""

    @abstractmethod
    def train(self, module: nn.Module, optimizer: torch.optim.Optimizer, name: str) -> Engine:
        """An engine around the module; ``name`` (e.g. "actor") appears in its errors.

        The optimizer (torch.optim.AdamW) holds the module's own parameters. The module moves to this rank's
        device and the engine's precision.
        """

    @abstractmethod
    def inference(self, module: nn.Module, name: str) -> Inference:
        """The module frozen, in eval mode, on this rank's device."""


@dataclass(kw_only=True, slots=True)
class Plain(EngineConfig):
    """Plain torch in float32, every rank with a whole copy: for tests, notebooks and tiny models."""

    @property
    def splits_parameters(self) -> bool:
        """Never."""
        return False

    @property
    def dtype(self) -> torch.dtype:
        """float32."""
        return torch.float32

    def train(self, module: nn.Module, optimizer: torch.optim.Optimizer, name: str) -> Engine:
        """A :class:`TorchEngine`."""
        whole = cast_parameters(module, torch.float32)
        return TorchEngine(whole, optimizer, name=name, clip=self.clip, compiled=self.compile)

    def inference(self, module: nn.Module, name: str) -> Inference:
        """A :class:`Frozen` module."""
        whole = cast_parameters(module, torch.float32).to(runtime.device())
        return Frozen(whole, name=name, compiled=self.compile)


@dataclass(kw_only=True, slots=True)
class ZeRO(EngineConfig):
    """DeepSpeed's ZeRO (Rajbhandari et al. 2020): what is split among the ranks grows with the stage."""

    stage: int = 2
    """0: nothing is split, 1: optimizer states, 2: gradients too, 3: parameters too."""

    precision: Precision = Precision.float32
    """Weights and activations; bfloat16 keeps float32 master weights and needs stage 1 or more."""

    offload_optimizer: bool = False
    """Keep optimizer states in CPU memory; stages 1 to 3."""

    offload_parameters: bool = False
    """Keep this rank's share of the parameters in CPU memory; stage 3."""

    nvme_path: str | None = None
    """Folder on a fast local disk for what is offloaded, in place of CPU memory; stage 3, needs libaio."""

    persistence_threshold: int = 100_000
    """Stage 3 keeps parameters of fewer elements than this whole on every rank."""

    def __post_init__(self) -> None:
        EngineConfig.__post_init__(self)
        if self.stage not in (0, 1, 2, 3):
            raise ValueError(f"ZeRO.stage must be 0, 1, 2 or 3, got {self.stage}")
        if self.stage == 0 and self.precision is Precision.bfloat16:
            raise ValueError(
                "ZeRO.precision must be float32 at stage 0, got bfloat16: DeepSpeed then takes a hidden "
                "optimizer step on zero gradients; use stage 1, 2 or 3"
            )
        if self.offload_optimizer and self.stage == 0:
            raise ValueError("ZeRO.offload_optimizer must be false at stage 0, got true; use stage 1, 2 or 3")
        if self.offload_parameters and self.stage != 3:
            raise ValueError(
                f"ZeRO.offload_parameters must be false at stage {self.stage}, got true; use stage 3"
            )
        if self.nvme_path is not None and not (
            self.stage == 3 and (self.offload_optimizer or self.offload_parameters)
        ):
            raise ValueError(
                f"ZeRO.nvme_path must be null where nothing is offloaded at stage 3, got {self.nvme_path}; "
                "set offload_optimizer or offload_parameters"
            )
        if self.nvme_path is not None and self.offload_parameters and self.precision is Precision.float32:
            raise ValueError(
                "ZeRO.precision must be bfloat16 for parameters on nvme_path, got float32: DeepSpeed rounds "
                "them to bfloat16 there; set offload_parameters=false or precision=bfloat16"
            )
        if self.compile and self.stage == 3:
            raise ValueError(
                "ZeRO.compile must be false at stage 3, got true: parameters are gathered within the layers, "
                "which leaves nothing to compile; use stage 0, 1 or 2"
            )
        if self.persistence_threshold < 0:
            raise ValueError(
                f"ZeRO.persistence_threshold must be at least 0, got {self.persistence_threshold}"
            )

    @property
    def splits_parameters(self) -> bool:
        """At stage 3."""
        return self.stage == 3

    @property
    def dtype(self) -> torch.dtype:
        """That of the precision."""
        return self.precision.dtype

    def train(self, module: nn.Module, optimizer: torch.optim.Optimizer, name: str) -> Engine:
        """A :class:`~rlhf.distributed.deepspeed_engine.DeepSpeedEngine`."""
        from rlhf.distributed.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine(module, optimizer, name=name, zero=self)

    def inference(self, module: nn.Module, name: str) -> Inference:
        """Split among the ranks at stage 3; below, a whole copy on every rank."""
        if self.stage < 3:
            whole = cast_parameters(module, self.precision.dtype).to(runtime.device())
            return Frozen(whole, name=name, compiled=self.compile)
        from rlhf.distributed.deepspeed_engine import sharded_module

        return Frozen(module, sharded_module(module, zero=self), name=name)


class Frozen:
    """A module in eval mode whose parameters take no gradient and whose forward builds no graph."""

    def __init__(
        self,
        module: nn.Module,
        forward: nn.Module | None = None,
        *,
        name: str = "model",
        compiled: bool = False,
    ) -> None:
        self.module = module.eval().requires_grad_(False)
        self._forward = module if forward is None else forward
        self._name = name
        self._passes = passes(module, name, compiled=compiled)

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward."""
        if self._forward is self.module:
            with self._passes:
                return self._forward(*args, **kwargs)
        with WATCH.meeting(f"the {self._name}'s forward pass"):
            return self._forward(*args, **kwargs)

    def release(self) -> None:
        """Empty every tensor, for DeepSpeed (0.19.8) holds on to the modules that it was ever given."""
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            share = getattr(tensor, "ds_tensor", None)
            for held in (tensor, share):
                if held is not None:
                    held.data = held.data.new_empty(0)
        runtime.free_memory()
