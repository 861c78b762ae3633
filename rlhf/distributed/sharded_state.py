"""The state by name of modules whose optimizer states DeepSpeed has split among the ranks (stages 1 to 3)."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import pad

from rlhf.distributed import named_state
from rlhf.distributed.collectives import rank, world_size
from rlhf.distributed.gathering import gathered, has_master
from rlhf.distributed.named_state import MOMENTS, Entry
from rlhf.tensor_file import Kind

PARTITIONS = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")
"""This rank's share in DeepSpeed's optimizers (0.19.8) of stage 3, stages 1 and 2, stage 1 in bfloat16."""


def sharded_entries(module: nn.Module, steps: int) -> dict[str, Entry]:
    """Every parameter, its moments once there have been steps, and the buffers."""
    entries: dict[str, Entry] = {}
    for name, parameter in module.named_parameters():
        entries[f"value/{name}"] = _value(parameter)
        if parameter.requires_grad and steps:
            entries |= {f"{moment}/{name}": _moment(parameter, moment) for moment in MOMENTS}
    return entries | named_state.buffers(module)


def master_weight(parameter: Tensor) -> Tensor:
    """The whole float32 weight of a trained parameter, on every rank; all of them take part."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_local_fp32_param

    if hasattr(parameter, "ds_id"):
        return _joined(parameter, safe_get_local_fp32_param(parameter))
    return _found(safe_get_full_fp32_param(parameter))


def link_moments(sharded: Any) -> None:
    """Let DeepSpeed's accessors find the moments of every parameter group.

    At stages 1 and 2 (0.19.8) it links them once, when the first group has made its first step and the others
    have no moments yet.
    """
    if hasattr(sharded, "_hp_optimizer_states_linked"):
        sharded._hp_optimizer_states_linked = False
        sharded._lazy_init_hp_params_optimizer_state()


def renew_moments(sharded: Any, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Let a fresh optimizer have the moments of one that has made so many steps, to be filled in.

    Args:
        sharded: DeepSpeed's optimizer, which splits the other.
        optimizer: torch's AdamW, whose state is made in its first step otherwise.
        steps: made before.
    """
    partitions = next(getattr(sharded, name) for name in PARTITIONS if hasattr(sharded, name))
    named_state.renew(optimizer, partitions, steps)


def _value(parameter: nn.Parameter) -> Entry:
    kind = Kind.of(parameter)
    if not parameter.requires_grad:
        return Entry(kind=kind, read=lambda: _gathered(parameter), write=lambda new: _set(parameter, new))

    def write(new: Tensor) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        if hasattr(parameter, "ds_id"):
            safe_set_local_fp32_param(parameter, _share(parameter, new))
        else:
            safe_set_full_fp32_param(parameter, new.to(parameter.device))
        _set(parameter, new)

    def read() -> Tensor:
        return master_weight(parameter) if has_master(parameter) else parameter

    return Entry(kind=Kind(shape=kind.shape, dtype=torch.float32), read=read, write=write)


def _moment(parameter: nn.Parameter, moment: str) -> Entry:
    from deepspeed import utils

    def read() -> Tensor:
        if hasattr(parameter, "ds_id"):
            return _joined(parameter, utils.safe_get_local_optimizer_state(parameter, moment))
        return _found(utils.safe_get_full_optimizer_state(parameter, moment))

    def write(new: Tensor) -> None:
        if hasattr(parameter, "ds_id"):
            utils.safe_set_local_optimizer_state(parameter, _share(parameter, new), moment)
        else:
            utils.safe_set_full_optimizer_state(parameter, new.to(parameter.device), moment)

    kind = Kind(shape=Kind.of(parameter).shape, dtype=torch.float32)
    return Entry(kind=kind, read=read, write=write)


@torch.no_grad()
def _joined(parameter: Any, own: Tensor | None) -> Tensor:
    """The whole of what stage 3 has split, from this rank's part and the others'.

    Each part is broadcast into its place. DeepSpeed's own accessor gathers all at once, for which gloo
    (torch 2.13) needs the whole a second time.
    """
    size, shape = parameter.ds_tensor.numel(), Kind.of(parameter).shape
    whole = torch.empty(world_size() * size, dtype=torch.float32, device=parameter.device)
    for source in range(world_size()):
        part = whole.narrow(0, source * size, size)
        if source == rank():
            part.copy_(_found(own))
        if world_size() > 1:
            dist.broadcast(part, src=source)
    return whole[: prod(shape)].view(shape)


def _found(tensor: Tensor | None) -> Tensor:
    assert tensor is not None  # else it is not DeepSpeed's
    return tensor


def _share(parameter: Any, whole: Tensor) -> Tensor:
    """This rank's part of a tensor at stage 3: an equal one, filled up with zeros at the end.

    DeepSpeed's setter of whole tensors (0.19.8) fails where there is something to fill up.
    """
    size: int = parameter.ds_tensor.numel()
    part = whole.flatten()[rank() * size : (rank() + 1) * size]
    return pad(part, (0, size - len(part)))


def _gathered(parameter: nn.Parameter) -> Tensor:
    with gathered(parameter):
        return parameter.detach().clone()


@torch.no_grad()
def _set(parameter: nn.Parameter, new: Tensor) -> None:
    """The weight that the module computes with, on every rank or in every rank's share."""
    if not hasattr(parameter, "ds_id"):
        parameter.copy_(new)
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.copy_(new)
