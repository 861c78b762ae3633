"""Runs one function of a test file on gloo ranks: python two_ranks.py FILE FUNCTION FOLDER [RANKS].

Each rank calls FUNCTION(FOLDER) between ``runtime.start()`` and ``runtime.stop()``, leaves the dict that it
returns in FOLDER/rank0.pt and rank1.pt, and ends as a command does. There are two unless RANKS
says otherwise, and no compiler, as on many a machine. They are forks of one process, which imports once.
"""

import importlib.util
import os
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from types import ModuleType


def launch(file: str, function: str, folder: str, ranks: str = "2") -> int:
    """Run this file. A fork of the caller itself would run the caller's exit functions when it ends."""
    return subprocess.run([sys.executable, __file__, file, function, folder, ranks], check=False).returncode


def play(file: str, function: str, folder: str, ranks: str = "2") -> int:
    """The highest exit status of the ranks, or number of the signal that ended one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {
        "WORLD_SIZE": ranks,
        "LOCAL_SIZE": ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "CC": "false",
        "CXX": "false",
        "TORCH_EXTENSIONS_DIR": f"{folder}/extensions",
    }
    module = imported(file)
    processes = [started(rank, module, function, Path(folder)) for rank in range(int(ranks))]
    return max(abs(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])) for process in processes)


def imported(file: str) -> ModuleType:
    """The test file, and DeepSpeed, which most of them come to need."""
    import deepspeed  # noqa: F401
    import torch

    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).parents[1]))
    spec = importlib.util.spec_from_file_location("work", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def started(rank: int, module: ModuleType, function: str, folder: Path) -> int:
    """The number of a process that is one rank."""
    process = os.fork()
    if process == 0:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        try:
            work(module, function, folder)
        except SystemExit as end:  # how a rank leaves that is alone
            os._exit(int(end.code or 0))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return process


def work(module: ModuleType, function: str, folder: Path) -> None:
    """What one rank does; it does not come back."""
    import torch

    from rlhf.distributed import runtime

    place = runtime.start()
    result = getattr(module, function)(folder)
    torch.save(result, folder / f"rank{place.rank}.pt")
    runtime.stop()
    runtime.leave(0)


if __name__ == "__main__":
    sys.exit(play(*sys.argv[1:]))
