"""The walls of the sandbox: what a process gives up, once and for all, before it runs foreign code.

Only the standard library, for it runs in a bare interpreter. What each layer is good for: docs/sandbox.md.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys

from rlhf.rewards import sandbox_filter

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH = 2
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER = 0x00020000, 0x08000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
SIGKILL = 9
CAPABILITIES_3 = 0x20080522

NOBODY = 65534
"""The user that a sandbox of root's runs as."""
ROOT = "/proc"
"""Where the view is built: a folder that every Linux has and from which no Python is run."""
SCRATCH = "/tmp"
SCRATCH_MIB = 16
DESCRIPTORS = 64

_libc = ctypes.CDLL(None, use_errno=True)


def confine(*, cpu_seconds: int, memory_mib: int, file_kib: int, processes: int) -> None:
    """Shut this process in; its children are the first to live in the new process namespace.

    Args:
        cpu_seconds: of each process; at the limit SIGXCPU, a second later SIGKILL.
        memory_mib: address space of each process.
        file_kib: largest file.
        processes: processes and threads that may live at once beside this one and its first child.

    Raises:
        OSError: the kernel refuses a layer; its message names the layer.
    """
    os.umask(0o022)
    apart = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWPID
    if os.geteuid() == 0:  # root's own processes escape RLIMIT_NPROC: build first, then become nobody
        _call("unshare", apart)
        _build_view()
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        _call("unshare", CLONE_NEWUSER)  # in which this sandbox's processes are counted by themselves
    else:
        user, group = os.geteuid(), os.getegid()
        _call("unshare", CLONE_NEWUSER | apart)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{user} {user} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")
        _build_view()
    _limit(cpu_seconds, memory_mib, file_kib, processes)
    _call("capset", struct.pack("Ii", CAPABILITIES_3, 0), bytes(24))
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_SET_DUMPABLE, 0)
    sandbox_filter.install()


def die_with_parent() -> None:
    """The kernel kills this process when its parent ends."""
    _prctl(PR_SET_PDEATHSIG, SIGKILL)


def _limit(cpu_seconds: int, memory_mib: int, file_kib: int, processes: int) -> None:
    limits = {
        resource.RLIMIT_CPU: (cpu_seconds, cpu_seconds + 1),
        resource.RLIMIT_AS: (memory_mib << 20, memory_mib << 20),
        resource.RLIMIT_FSIZE: (file_kib << 10, file_kib << 10),
        resource.RLIMIT_NPROC: (processes + 2, processes + 2),
        resource.RLIMIT_NOFILE: (DESCRIPTORS, DESCRIPTORS),
        resource.RLIMIT_CORE: (0, 0),
    }
    for limit, values in limits.items():
        resource.setrlimit(limit, values)


def _build_view() -> None:
    """A root of its own: the interpreter's libraries to read, an empty scratch folder, nothing else."""
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", ROOT, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for folder in _libraries():
        target = ROOT + folder
        if os.path.islink(folder):  # noqa: PTH114 - pathlib takes longer to import than the rest runs
            os.symlink(os.readlink(folder), target)  # noqa: PTH115, PTH211
        elif os.path.isdir(folder):  # noqa: PTH112
            os.makedirs(target, exist_ok=True)  # noqa: PTH103
            _mount(folder, target, None, MS_BIND | MS_REC)
            _read_only(target, AT_RECURSIVE)
    os.mkdir(f"{ROOT}/dev")  # noqa: PTH102
    os.close(os.open(f"{ROOT}/dev/null", os.O_CREAT | os.O_WRONLY))
    _mount("/dev/null", f"{ROOT}/dev/null", None, MS_BIND)
    os.mkdir(ROOT + SCRATCH)  # noqa: PTH102
    options = f"size={SCRATCH_MIB}m,nr_inodes=1024,mode=1777"
    _mount("tmpfs", ROOT + SCRATCH, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options)
    _read_only(ROOT, 0)
    os.chdir(ROOT)
    _call("pivot_root", b".", b".")
    _call("umount2", b".", MNT_DETACH)
    os.chdir(SCRATCH)


def _libraries() -> list[str]:
    """Folders of the standard library, and of the shared libraries that it loads."""
    own = [f"{sys.base_prefix}/lib", f"{sys.base_prefix}/{sys.platlibdir}"]
    return list(dict.fromkeys(["/usr/lib", "/usr/lib64", "/lib", "/lib64", *own]))


def _read_only(target: str, flags: int) -> None:
    """Without write access, devices and set-user-id, with ``AT_RECURSIVE`` down to the mounts below."""
    attributes = struct.pack("QQQQ", 1 | MS_NOSUID | MS_NODEV, 0, 0, 0)  # as MOUNT_ATTR_… has them
    arguments = (ctypes.c_long(AT_FDCWD), target.encode(), ctypes.c_long(flags))
    size = ctypes.c_long(len(attributes))
    _call("syscall", ctypes.c_long(SYS_MOUNT_SETATTR), *arguments, attributes, size)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind)]
    _call("mount", *texts, ctypes.c_ulong(flags), options.encode() or None)


def _write(file: str, text: str) -> None:
    descriptor = os.open(file, os.O_WRONLY)
    os.write(descriptor, text.encode())
    os.close(descriptor)


def _prctl(option: int, value: int) -> None:
    _call("prctl", option, ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3)


def _call(name: str, *arguments: object) -> None:
    """A function of libc that returns -1 where it fails.

    Raises:
        OSError: it failed, or this system has none of that name.
    """
    try:
        function = getattr(_libc, name)
    except AttributeError:
        raise OSError(f"{name}: only Linux has it") from None
    if function(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
