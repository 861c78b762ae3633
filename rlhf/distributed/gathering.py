"""Whole tensors from models that DeepSpeed may have split among the ranks (ZeRO stage 3)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from rlhf.distributed.collectives import is_main, on_main
from rlhf.distributed.watch import WATCH
from rlhf.tensor_file import Kind, TensorStream


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


def has_master(tensor: Tensor) -> bool:
    """Whether a tensor of a training engine is best read as its float32 master weight."""
    return tensor.requires_grad and (hasattr(tensor, "ds_id") or tensor.dtype == torch.bfloat16)


def whole_tensors(module: nn.Module, master: Callable[[Tensor], Tensor] | None = None) -> TensorStream:
    """The module's state dict, one whole tensor at a time; all ranks take all of them, and together.

    Of names that share a parameter (tied weights) the first comes.

    Args:
        module: sharded or not.
        master: a parameter's whole float32 master weight, on every rank, read in place of those that
            :func:`has_master`; without it all tensors are taken as they are.
    """
    distinct = {names[0]: tensor for names, tensor in _distinct(module)}

    def kind(tensor: Tensor) -> Kind:
        found = Kind.of(tensor)
        return replace(found, dtype=torch.float32) if master is not None and has_master(tensor) else found

    def tensors() -> Iterator[Tensor]:
        for tensor in distinct.values():
            if master is not None and has_master(tensor):
                with WATCH.meeting("the gathering of weights"):
                    whole = master(tensor)
                yield whole
                del whole  # before the next is made
            else:
                with gathered(tensor):
                    yield tensor.detach()

    return TensorStream(kinds={name: kind(tensor) for name, tensor in distinct.items()}, tensors=tensors)


def full_state(module: nn.Module, stream: TensorStream | None = None) -> dict[str, Tensor]:
    """The module's state dict with whole tensors on the CPU, on rank 0; ``{}`` on the others.

    All ranks take part. Names that share a parameter (tied weights) share one tensor object.

    Args:
        module: sharded or not.
        stream: of its tensors, where they are not to be taken as they are.
    """
    copies: dict[str, Tensor] = {}
    for name, tensor in whole_tensors(module) if stream is None else stream:
        if is_main():
            copies[name] = tensor.to("cpu", copy=True)
    if not is_main():
        return {}
    first = {name: names[0] for names, _ in _distinct(module) for name in names}
    return {name: copies[first[name]] for name in module.state_dict(keep_vars=True)}


def to_main(stream: TensorStream, action: Callable[[TensorStream], object]) -> None:
    """Let rank 0 do something with every tensor of a stream that all ranks make; its error is that of all.

    Whatever it leaves, because it failed or does not want it, is gathered all the same.
    """
    coming = stream.tensors()

    def on_rank_0() -> None:
        try:
            action(replace(stream, tensors=lambda: coming))
        finally:
            _exhaust(coming)

    if not is_main():
        _exhaust(coming)
    on_main(on_rank_0)


def _exhaust(tensors: Iterator[Tensor]) -> None:
    for _ in tensors:
        pass


def _distinct(module: nn.Module) -> list[tuple[list[str], Tensor]]:
    """Every tensor of the state dict with all its names."""
    found: dict[int, tuple[list[str], Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), ([], tensor))[0].append(name)
    return list(found.values())


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
