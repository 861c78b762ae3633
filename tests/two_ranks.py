"""Runs one function of a test file on gloo ranks: python two_ranks.py FILE FUNCTION FOLDER [RANKS].

Each rank calls FUNCTION(FOLDER) between ``runtime.start()`` and ``runtime.stop()``, leaves the dict that it
returns in FOLDER/rank0.pt and rank1.pt, and ends as a command does. There are two unless RANKS
says otherwise, and no compiler, as on many a machine.
"""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path


def launch(file: str, function: str, folder: str, ranks: str = "2") -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "WORLD_SIZE": ranks,
        "LOCAL_SIZE": ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "CC": "false",
        "CXX": "false",
        "TORCH_EXTENSIONS_DIR": f"{folder}/extensions",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, file, function, folder],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(int(ranks))
    ]
    return max(abs(process.wait()) for process in processes)


def work(file: str, function: str, folder: str) -> None:
    import torch

    from rlhf.distributed import runtime

    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).parents[1]))
    spec = importlib.util.spec_from_file_location("work", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    place = runtime.start()
    result = getattr(module, function)(Path(folder))
    torch.save(result, Path(folder) / f"rank{place.rank}.pt")
    runtime.stop()
    runtime.leave(0)


if __name__ == "__main__":
    if "RANK" in os.environ:
        work(*sys.argv[1:])
    else:
        sys.exit(launch(*sys.argv[1:]))
