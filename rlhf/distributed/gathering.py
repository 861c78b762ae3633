"""Whole tensors from models that DeepSpeed may have split among the ranks (ZeRO stage 3)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rlhf.distributed.collectives import is_main
from rlhf.distributed.watch import WATCH


def is_sharded(module: nn.Module) -> bool:
    """Whether parameters are split among the ranks, so that outside a forward they are empty."""
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters())


@contextmanager
def gathered(*tensors: Tensor) -> Iterator[None]:
    """Inside the block these tensors are whole on every rank, to be read. All ranks take part.

    Tensors that are not sharded, buffers for instance, are left as they are.
    """
    sharded = [tensor for tensor in tensors if hasattr(tensor, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with contextlib.ExitStack() as stack:
        with WATCH.meeting("the gathering of weights"):
            stack.enter_context(deepspeed.zero.GatheredParameters(sharded))
        yield


@torch.no_grad()
def full_state(
    module: nn.Module, value: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> dict[str, Tensor]:
    """The module's state dict with whole tensors on the CPU, on rank 0; ``{}`` on the others.

    All ranks take part. One tensor is gathered at a time; names that share a parameter (tied weights)
    share one tensor object.

    Args:
        module: sharded or not.
        value: what to export of a gathered parameter or buffer, on every rank; itself by default.
    """
    copies: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in copies:
            with gathered(tensor):
                whole = value(tensor).detach()
                copies[id(tensor)] = whole.to("cpu", copy=True) if is_main() else whole.new_empty(0)
        state[name] = copies[id(tensor)]
    return state if is_main() else {}


def refresh(target: nn.Module, source: nn.Module) -> None:
    """Copy a possibly sharded model into a plain one of the same structure; every rank calls it.

    One parameter is gathered at a time, so the peak is one plain model and one tensor. Values are cast to
    the target's dtype.

    Raises:
        ValueError: the two do not have the same names.
    """
    _each(target, source, Tensor.copy_)


def blend(target: nn.Module, source: nn.Module, weight: float) -> None:
    """Move a plain model by ``weight`` of the way to a possibly sharded one; every rank calls it.

    Raises:
        ValueError: the two do not have the same names.
    """

    def move(own: Tensor, other: Tensor) -> None:
        if own.is_floating_point():
            own.lerp_(other.to(own.dtype), weight)

    _each(target, source, move)


@torch.no_grad()
def _each(target: nn.Module, source: nn.Module, action: Callable[[Tensor, Tensor], object]) -> None:
    """``action`` on every tensor of the target and its whole counterpart, tied ones once."""
    sources, targets = source.state_dict(keep_vars=True), target.state_dict(keep_vars=True)
    if sources.keys() != targets.keys():
        different = sorted(sources.keys() ^ targets.keys())
        raise ValueError(f"refresh: target and source must have the same parameters, {different[0]} differs")
    seen: set[int] = set()
    for name, tensor in targets.items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            with gathered(sources[name]):
                action(tensor, sources[name])
