"""The filter of system calls, run by an interpreter of its instructions as the kernel's manual has them."""

from __future__ import annotations

import errno
import struct

import pytest

from rlhf.rewards import sandbox_filter as made

ALLOWED = {"read": (0, 63), "write": (1, 64), "mmap": (9, 222), "exit_group": (231, 94), "openat": (257, 56)}
REFUSED, MISSING = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
FORK_FLAGS, THREAD_FLAGS = 0x01200011, 0x003D0F00  # what libc's fork and pthread_create hand to clone


def verdict(machine: str, number: int, first: int = 0, architecture: int | None = None) -> int:
    own = made.ARCHITECTURES[machine][0] if architecture is None else architecture
    data = struct.pack("<iIQ6Q", number, own, 0, first, 0, 0, 0, 0, 0)
    program, at, value = made.instructions(machine), 0, 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        if code == 0x06:
            return operand
        if code == 0x20:
            (value,) = struct.unpack_from("<I", data, operand)
        else:
            true = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[code]
            at += if_true if true else if_false


@pytest.mark.parametrize(("column", "machine"), enumerate(["x86_64", "aarch64"]))
def test_every_listed_call_is_refused_and_no_other(column: int, machine: str) -> None:
    refused = {numbers[column] for numbers in made.DENIED.values()}
    assert len(refused) == len(made.DENIED)
    special = {made.CLONE[column], made.CLONE3[column]}
    for number in set(range(512)) - special:
        assert verdict(machine, number) == (REFUSED if number in refused else 0x7FFF0000)
    for numbers in ALLOWED.values():
        assert verdict(machine, numbers[column]) == 0x7FFF0000


@pytest.mark.parametrize(("column", "machine"), enumerate(["x86_64", "aarch64"]))
def test_clone_makes_processes_and_threads_but_no_namespaces(column: int, machine: str) -> None:
    clone = made.CLONE[column]
    assert verdict(machine, clone, FORK_FLAGS) == 0x7FFF0000
    assert verdict(machine, clone, THREAD_FLAGS) == 0x7FFF0000
    for bit in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(machine, clone, FORK_FLAGS | bit) == REFUSED
    assert verdict(machine, made.CLONE3[column]) == MISSING


def test_another_architecture_is_killed_and_x32_refused() -> None:
    assert verdict("x86_64", 0, architecture=0x40000003) == 0x80000000  # i386
    assert verdict("x86_64", 0x40000000 | 41) == REFUSED


def test_an_unknown_machine_is_named() -> None:
    with pytest.raises(OSError, match="no system call numbers for riscv64"):
        made.instructions("riscv64")
