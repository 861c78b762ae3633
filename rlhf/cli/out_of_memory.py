"""A job that ran out of memory ends in one line and the table of ``rlhf plan``."""

from __future__ import annotations

import torch
from omegaconf import DictConfig

from rlhf.distributed.runtime import Runtime

CPU_ALLOCATOR = "DefaultCPUAllocator"
"""What torch's RuntimeError names when the system gives it no memory."""


class OutOfMemory(Exception):  # noqa: N818 - what it is
    """The job needs more memory than there is."""

    def __init__(self, fault: str, table: str) -> None:
        super().__init__(f"out of memory: {fault}")
        self.table = table
        """What the job was planned to hold; empty where that is not known."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation has failed, on a GPU or in the host's memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and CPU_ALLOCATOR in str(error)


def first_line(error: BaseException) -> str:
    """What it says, without the advice that follows."""
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    return text[max(text.find(CPU_ALLOCATOR), 0) :]


def memory_table(name: str, raw: DictConfig, runtime: Runtime) -> str:
    """The table of ``rlhf plan`` for a job; nothing for a command that it does not know, or without room."""
    from rlhf.cli.plan import PLANNED, plan_of
    from rlhf.planning.roles import Machine

    if name not in PLANNED:
        return ""
    machine = Machine(ranks=runtime.world_size, device=runtime.device.type)
    try:
        return plan_of(name, raw, machine).table()
    except (MemoryError, RuntimeError, ValueError, OSError) as error:
        return f"(rlhf plan {name} … has no room here: {first_line(error)})\n"
