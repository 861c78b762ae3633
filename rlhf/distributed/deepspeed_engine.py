"""DeepSpeed behind two verbs: the one place that undoes its averaging over ranks and accumulation steps."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlhf.distributed import named_state, runtime
from rlhf.distributed.collectives import world_size
from rlhf.distributed.compilation import passes
from rlhf.distributed.engine import (
    LearningRates,
    cast_parameters,
    clip_gradients,
    first_not_finite,
    progress_of,
    require_finite,
    require_graph,
)
from rlhf.distributed.gathering import full_state, whole_tensors
from rlhf.distributed.sharded_state import (
    link_moments,
    master_weight,
    renew_moments,
    sharded_entries,
)
from rlhf.distributed.watch import WATCH
from rlhf.tensor_file import TensorStream

if TYPE_CHECKING:
    from rlhf.distributed.engine_config import ZeRO


class DeepSpeedEngine:
    """ZeRO stages 0 to 3, float32 and bfloat16: sums over ranks and micro-batches, whatever the stage."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, *, name: str, zero: ZeRO) -> None:
        self.name = name
        self._zero, self._optimizer = zero, optimizer
        self._rates = LearningRates(optimizer)
        self._steps = 0
        self._stage0_norm = 0.0
        self._faulty: str | None = None
        self._passes = passes(module, name, compiled=zero.compile)
        if zero.stage == 0:
            optimizer.register_step_pre_hook(self._clip_unsharded)
        self._engine = _initialize(module, optimizer, zero)

    @property
    def module(self) -> nn.Module:
        """The wrapped module; at stage 3 its parameters are empty outside a forward."""
        return self._engine.module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward."""
        with WATCH.meeting(f"the {self.name}'s forward pass"), self._passes:
            return self._engine(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Add this rank's share of a sum. DeepSpeed averages over ranks, so multiply first."""
        require_graph(self.name, loss)
        with WATCH.meeting(f"the reduction of the {self.name}'s gradients"), self._passes:
            self._engine.backward(loss * world_size(), scale_wrt_gas=False)

    def step(self) -> float:
        """Reduce, clip, update; the norm before clipping.

        At stages 1 to 3 DeepSpeed itself discards a step whose norm is not finite, without a word, and
        reports the norm as infinite.
        """
        with WATCH.meeting(f"the {self.name}'s optimizer step"):
            self._engine.step()
            norm = self._engine.get_global_grad_norm()
            norm = self._stage0_norm if norm is None else float(norm)
        require_finite(self.name, self._steps + 1, norm, self._faulty)
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
        """Parameters, moments and step, by name, whatever the sharding."""
        progress = progress_of(_kind(self._zero), self._steps, self._rates)
        named_state.save(folder, progress, self._entries(self._steps))

    def load(self, folder: Path) -> None:
        """Continue from :meth:`save`, at any stage on any number of ranks."""
        if self._zero.nvme_path is not None:
            raise ValueError(
                f"{self.name}: nvme_path must be null to go on from {folder}, got {self._zero.nvme_path}; "
                "DeepSpeed has no access to moments that lie on NVMe before its first step"
            )
        saved = named_state.read_progress(folder, self.name)
        if self._zero.stage == 0:
            named_state.renew(self._optimizer, self._parameters, saved.steps)
        else:
            renew_moments(self._engine.optimizer, self._optimizer, saved.steps)
        named_state.load(folder, self.name, self._entries(saved.steps))
        self._steps = saved.steps
        self._rates.scale(saved.lr_scale)

    def weights(self) -> TensorStream:
        """The module's state dict; float32 master weights in place of bfloat16 ones."""
        return whole_tensors(self.module, master_weight)

    def state(self) -> dict[str, Tensor]:
        """The module's state dict on the CPU, on rank 0; float32 master weights in place of bfloat16 ones."""
        return full_state(self.module, self.weights())

    @property
    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    def _entries(self, steps: int) -> dict[str, named_state.Entry]:
        if self._zero.stage == 0:
            return named_state.plain_entries(self.module, self._optimizer, steps)
        if steps:
            link_moments(self._engine.optimizer)
        return sharded_entries(self.module, steps)

    def _clip_unsharded(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Stage 0 reports no norm, so clip where the gradients are already reduced, before the update."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._stage0_norm = clip_gradients(parameters, self._zero.clip)
        if not math.isfinite(self._stage0_norm):
            self._faulty = first_not_finite(self.module)
            optimizer.zero_grad(set_to_none=True)  # a parameter without a gradient does not move


def sharded_module(module: nn.Module, *, zero: ZeRO) -> nn.Module:
    """The module split among the ranks for forwards only, without an optimizer (ZeRO-3)."""
    return _initialize(module.requires_grad_(False), None, zero)


def _initialize(module: nn.Module, optimizer: torch.optim.Optimizer | None, zero: ZeRO) -> Any:
    _attach()
    import deepspeed

    if zero.nvme_path is not None:
        _require_libaio()
    cast_parameters(module, zero.precision.dtype)
    settings = _settings(module, zero, trains=optimizer is not None)
    with _silence(), WATCH.meeting("DeepSpeed's initialization"):
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
    runtime.wait_as_long_in_every_group()
    return engine


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Swallow what DeepSpeed prints past its logger (0.19.8: memory figures of the bfloat16 optimizer)."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _attach() -> None:
    """Join DeepSpeed to the process group; on a CPU nothing is compiled."""
    if not dist.is_initialized():
        raise ValueError("the DeepSpeed engine needs the ranks: call rlhf.distributed.runtime.start() first")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if deepspeed.comm.is_initialized():
        return
    if runtime.device().type == "cpu":
        # A private table (DeepSpeed 0.19.8); without it DeepSpeed compiles an all-reduce for a minute.
        with contextlib.suppress(AttributeError, TypeError):
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(verbose=False)


def has_libaio() -> bool:
    """Whether DeepSpeed can build what reads and writes NVMe. It needs real standard streams to find out."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    return bool(AsyncIOBuilder().is_compatible(verbose=False))


def _require_libaio() -> None:
    if not has_libaio():
        raise ValueError(
            "ZeRO.nvme_path needs libaio and its headers (Debian: libaio-dev), which are missing here; "
            "without nvme_path the offload is to CPU memory"
        )


def bucket_elements(trained: int) -> int:
    """Gradients that are reduced at a time: DeepSpeed's own number, but no more than the model has."""
    return min(500_000_000, max(trained, 1))


def _settings(module: nn.Module, zero: ZeRO, *, trains: bool) -> dict[str, Any]:
    """DeepSpeed's configuration."""
    trained = sum(getattr(p, "ds_numel", p.numel()) for p in module.parameters() if p.requires_grad)
    sharding: dict[str, Any] = {
        "stage": zero.stage,
        "reduce_bucket_size": bucket_elements(trained),
        "stage3_param_persistence_threshold": zero.persistence_threshold,
    }
    where: dict[str, Any] = {"device": "cpu"}
    if zero.nvme_path is not None:
        where = {"device": "nvme", "nvme_path": zero.nvme_path}
    if zero.offload_optimizer and trains:
        sharding["offload_optimizer"] = where
    if zero.offload_parameters:
        largest = max(getattr(p, "ds_numel", p.numel()) for p in module.parameters())
        sharding["offload_param"] = where | ({"buffer_size": largest} if zero.nvme_path else {})
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # only for DeepSpeed's own statistics
        "managed_gradient_accumulation": False,  # any number of backwards, then a step
        "zero_optimization": sharding,
        "gradient_clipping": zero.clip if zero.clip and zero.stage else 0.0,  # stage 0 clips in the hook
        "zero_allow_untested_optimizer": True,  # torch's AdamW: DeepSpeed's own would be compiled
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    if zero.precision.dtype == torch.bfloat16:
        settings["bf16"] = {"enabled": True}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


def _kind(zero: ZeRO) -> str:
    offload = [part for part in ("optimizer", "parameters") if getattr(zero, f"offload_{part}")]
    return " ".join([f"ZeRO-{zero.stage}", zero.precision.value, *(f"offload-{part}" for part in offload)])
