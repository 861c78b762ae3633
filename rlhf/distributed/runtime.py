"""The ranks of a run, and their devices: the one place that reads the environment."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import NoReturn

import torch
import torch.distributed as dist
from torch.distributed import (  # type: ignore[attr-defined]
    HashStore,
    PrefixStore,
    Store,
    rendezvous,
)

from rlhf.distributed.watch import WATCH

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Runtime:
    """Who this process is."""

    rank: int
    world_size: int
    local_rank: int  # on its machine; the number of its GPU
    device: torch.device


def start(
    *,
    timeout: timedelta = timedelta(minutes=30),
    report: Callable[[str], object] = lambda line: sys.stderr.write(f"{line}\n"),
) -> Runtime:
    """Join the ranks that the launcher (deepspeed, torchrun) describes, or run alone when there is none.

    gloo on a CPU, nccl on a GPU. Calling it again while started returns the same ``Runtime``; after
    :func:`stop` it joins anew, as the jobs of a multirun do one after another. From here on a rank that is
    missing ends the process (``rlhf/distributed/watch.py``).

    Args:
        timeout: how long a rank waits for the others before its process ends.
        report: tells the user, in one line, which rank was missing.

    Raises:
        ValueError: the launcher's variables are incomplete, or not all ranks came.
    """
    _quieten()
    rank, world_size, local_rank = _place()
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        store = HashStore() if world_size == 1 else _next_store(rank, timeout)
        if world_size > 1:
            WATCH.start(
                store.clone(),  # type: ignore[attr-defined]
                rank=rank,
                ranks=world_size,
                timeout=timeout,
                returns_early=backend == "nccl",
                report=report,
            )
        with WATCH.meeting("the process group"):
            dist.init_process_group(
                backend,
                store=store,
                rank=rank,
                world_size=world_size,
                timeout=group_timeout(timeout),
            )
    return Runtime(rank, world_size, local_rank, device())


def group_timeout(timeout: timedelta) -> timedelta:
    """How long the backend itself waits: longer, for it cannot say who is missing."""
    return 2 * timeout


def wait_as_long_in_every_group() -> None:
    """Give the groups that DeepSpeed makes the timeout of the ranks' own; torch gives them its default."""
    from torch.distributed import distributed_c10d

    groups = list(distributed_c10d._world.pg_map)  # private, as is the setter (torch 2.13)
    timeout = groups[0]._get_backend(device()).options._timeout
    for group in groups[1:]:
        distributed_c10d._set_pg_timeout(timeout, group)


def stop() -> None:
    """Leave the ranks; nothing when not started. Engines made before are of no use afterwards."""
    if not dist.is_initialized():
        return
    WATCH.stop()
    deepspeed_comm = sys.modules.get("deepspeed.comm")
    if deepspeed_comm is not None and deepspeed_comm.is_initialized():
        deepspeed_comm.destroy_process_group()  # also forgets the groups that DeepSpeed keeps
    else:
        dist.destroy_process_group()


def abandon(error: str) -> None:
    """Leave the ranks because of ``error``, which the others are told.

    Among several the process must end after it: what breaks off a collective may hang itself.
    """
    if dist.is_initialized() and dist.get_world_size() > 1:
        WATCH.fail(error)
    else:
        stop()


def leave(status: int) -> NoReturn:
    """End this process, after :func:`stop`, with an exit status.

    Among several ranks without the interpreter's own shutdown: a thread of gloo that releases its last tensor
    just then aborts the process (torch 2.13), and DeepSpeed keeps the threads' group for good.
    """
    if alone():
        sys.exit(status)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def device() -> torch.device:
    """Where this rank computes: its GPU, or the CPU on a machine without one."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def free_memory() -> None:
    """Give back what models that nobody refers to any more have left behind."""
    gc.collect()  # wrapped modules are part of cycles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def secret(variable: str) -> str:
    """What an environment variable holds that must not stand in a configuration.

    Raises:
        ValueError: it is not set, or empty.
    """
    value = os.environ.get(variable, "").strip()
    if not value:
        raise ValueError(f"the environment variable {variable} must hold a token, and is empty or not set")
    return value


def rank_label() -> str:
    """`` [rank 1]`` where there are several, for messages; known before and after the ranks are joined."""
    return "" if alone() else f" [rank {os.environ.get('RANK', '?')}]"


def alone() -> bool:
    """Whether the launcher has started no other rank; known before and after the ranks are joined."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1


def _place() -> tuple[int, int, int]:
    """Rank, world size and local rank; without a launcher they are set to those of a single process."""
    if "WORLD_SIZE" not in os.environ and "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_SIZE="1")  # DeepSpeed reads them
    needed = LAUNCHER[:3] if os.environ.get("WORLD_SIZE") == "1" else LAUNCHER
    missing = [name for name in needed if name not in os.environ]
    if missing:
        raise ValueError(f"the launcher must set {', '.join(LAUNCHER)}; missing: {', '.join(missing)}")
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])


@cache
def _store(timeout: timedelta) -> Store:
    """The ranks' meeting point, kept as long as the process: its port is not bound a second time."""
    return next(rendezvous("env://", timeout=timeout))[0]


def _next_store(rank: int, timeout: timedelta) -> Store:
    """A fresh part of the store for each job of the process, so that no job reads an older one's keys."""
    try:
        store = _store(timeout)
    except dist.DistError as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).partition("\n")[0]
        raise ValueError(f"not all {os.environ['WORLD_SIZE']} ranks met at {address}: {reason}") from error
    return PrefixStore(f"job{store.add(f'jobs_of_rank{rank}', 1)}", store)


def _quieten() -> None:
    """Keep the libraries' chatter off the terminal; their errors and our own messages stay."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    # DeepSpeed calls these every step; torch 2.13 warns each time.
    warnings.filterwarnings(
        "ignore", message=r".*torch\.distributed\..* is deprecated", category=FutureWarning
    )
