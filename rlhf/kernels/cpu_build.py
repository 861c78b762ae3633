"""The C++ of CPUs: compiled from its sources when first wanted, then taken from a cache folder.

It needs a C++ compiler with OpenMP; the head also a build of torch and a CPU that have its small matrix
products. Where anything is missing torch's own operations do the same, in more time.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import logging
import platform
import subprocess
import tempfile
from pathlib import Path

import torch

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("cpu_head.cpp")
DECODE_SOURCE = Path(__file__).with_name("cpu_decode.cpp")
ATTENTION_SOURCE = Path(__file__).with_name("cpu_attention.cpp")
STEP_SOURCE = Path(__file__).with_name("cpu_step.cpp")
FLAGS = (
    *("-O3", "-march=native", "-std=c++20", "-fPIC", "-shared", "-fopenmp", "-ffp-contract=fast"),
    *("-fno-trapping-math", "-fno-math-errno"),  # a comparison is no reason to leave vectors
)
SECONDS = 300
"""A compiler that takes longer is given up."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The functions of ``cpu_head.cpp``; None, and one line in the log, where they cannot be had."""
    return _loaded(SOURCE, "head")


@functools.cache
def decode_library() -> ctypes.CDLL | None:
    """The functions of ``cpu_decode.cpp``; None, and one line in the log, where they cannot be had."""
    return _loaded(DECODE_SOURCE, "decoding")


@functools.cache
def attention_library() -> ctypes.CDLL | None:
    """The function of ``cpu_attention.cpp``; None, and one line in the log, where it cannot be had."""
    return _loaded(ATTENTION_SOURCE, "attention of packed rows")


@functools.cache
def step_library() -> ctypes.CDLL | None:
    """The functions of ``cpu_step.cpp``; None, and one line in the log, where they cannot be had."""
    compiled = _loaded(STEP_SOURCE, "decoder step")
    if compiled is not None:
        compiled.step_room.restype = compiled.few_rows_room.restype = ctypes.c_int64
    return compiled


def _loaded(source: Path, what: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(_built(source)))
    except subprocess.CalledProcessError as error:
        reason = next((line for line in error.stderr.splitlines() if "error" in line), str(error))
    except (OSError, ImportError, RuntimeError, subprocess.TimeoutExpired) as error:
        reason = str(error).splitlines()[0]
    log.warning("no compiled %s on this CPU, torch's operations take its place: %s", what, reason)
    return None


def _built(source: Path) -> Path:
    """The shared library, made by one process while others wait."""
    from torch.utils import cpp_extension  # slow to import

    folder = Path(cpp_extension._get_build_directory(f"rlhf_{source.stem}", False))
    compiler = cpp_extension.get_cxx_compiler()
    made = folder / f"{_fingerprint(source, compiler)}.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # which a process that dies lets go
        if not made.exists():
            _compile(source, compiler, [*cpp_extension.include_paths()], made)
    return made


def _compile(source: Path, compiler: str, include: list[str], made: Path) -> None:
    libraries = Path(torch.__file__).parent / "lib"
    with tempfile.TemporaryDirectory(dir=made.parent) as folder:
        target = Path(folder) / made.name
        command = [compiler, *FLAGS, str(source), "-o", str(target)]
        command += [word for path in include for word in ("-isystem", path)]
        command += [f"-L{libraries}", "-ltorch_cpu", "-lc10"]
        log.info("compiling %s, once on this machine", source.name)
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
        target.replace(made)  # whole or not at all


def _fingerprint(source: Path, compiler: str) -> str:
    """Of all that the result depends on; a home folder may be shared by machines with other processors."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else [platform.processor()]
    features = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    headers = [header.read_text() for header in sorted(source.parent.glob("*.h"))]
    parts = [source.read_text(), *headers, *FLAGS, compiler, torch.__version__, platform.machine(), *features]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
