"""What the ranks tell each other; without a process group there is one rank, and it is the identity."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rlhf.distributed import runtime
from rlhf.distributed.watch import WATCH

T = TypeVar("T")


def rank() -> int:
    """This process's number among the ranks, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is rank 0, which writes and prints."""
    return rank() == 0


def barrier() -> None:
    """Wait for every rank."""
    if world_size() > 1:
        with WATCH.meeting("the barrier"):
            dist.barrier()


def all_sum(tensor: Tensor) -> Tensor:
    """The elementwise sum over ranks, as a new tensor of the same shape without a graph.

    Floating point is added in float64 and returned in its own dtype; integers and bools become int64.
    """
    floating = tensor.is_floating_point()
    total = tensor.detach().to(runtime.device(), torch.float64 if floating else torch.int64, copy=True)
    with WATCH.meeting("the sum over ranks"):
        if world_size() > 1:
            dist.all_reduce(total)
        return total.to(tensor.device, tensor.dtype if floating else torch.int64)


def all_max(tensor: Tensor) -> Tensor:
    """The elementwise maximum over ranks, as a new tensor of the same shape and dtype without a graph."""
    largest = tensor.detach().to(runtime.device(), copy=True)
    with WATCH.meeting("the maximum over ranks"):
        if world_size() > 1:
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return largest.to(tensor.device)


def gather_objects(item: T) -> list[T]:
    """Every rank's object, in the order of ranks, on every rank. Objects travel pickled."""
    if world_size() == 1:
        return [item]
    items: list[T] = [item] * world_size()
    with WATCH.meeting("the exchange of objects"):
        dist.all_gather_object(items, item)
    return items


def broadcast_object(item: T, source: int = 0) -> T:
    """The object of rank ``source``, on every rank. It travels pickled."""
    if world_size() == 1:
        return item
    items = [item]
    with WATCH.meeting(f"the broadcast from rank {source}"):
        dist.broadcast_object_list(items, src=source)
    return items[0]


def on_main(action: Callable[[], T]) -> T:
    """Run on rank 0 alone; every rank gets its result, or its error."""
    if world_size() == 1:
        return action()
    outcome = broadcast_object(_attempt(action) if is_main() else None)
    assert outcome is not None
    result, error = outcome
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def on_every_rank(action: Callable[[], object]) -> None:
    """Run on every rank; when it fails on one, it fails on all, so that none waits for a rank that left."""
    if world_size() == 1:
        action()
        return
    _, own = _attempt(action, keep_result=False)
    for index, error in enumerate(gather_objects(own)):
        if error is not None:
            raise own or type(error)(f"rank {index}: {error}")


def _attempt(action: Callable[[], T], keep_result: bool = True) -> tuple[T | None, Exception | None]:
    """The action's result or its error, the latter as a plain type that can be sent to any rank."""
    try:
        result = action()
    except (FileNotFoundError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        return None, kind(str(error))
    except Exception as error:
        return None, RuntimeError(f"{type(error).__name__}: {error}")
    return result if keep_result else None, None
