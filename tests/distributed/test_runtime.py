import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from rlhf.distributed import collectives, runtime

PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR")


@pytest.fixture
def no_launcher() -> Iterator[None]:
    before = {name: os.environ.pop(name, None) for name in PLACE}
    yield
    runtime.stop()
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.mark.usefixtures("no_launcher")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is a GPU there")
def test_without_a_launcher_one_process_runs_alone() -> None:
    expected = runtime.Runtime(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
    assert runtime.start() == expected
    assert dist.get_backend() == "gloo"
    assert runtime.start() == expected  # again, while started
    assert collectives.all_sum(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]


@pytest.mark.usefixtures("no_launcher")
def test_jobs_start_and_stop_one_after_another() -> None:
    for _ in range(3):
        runtime.start()
        collectives.barrier()
        runtime.stop()
        assert not dist.is_initialized()
    runtime.stop()


@pytest.mark.usefixtures("no_launcher")
def test_a_launcher_that_forgets_a_variable_is_refused() -> None:
    os.environ.update(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="localhost")
    with pytest.raises(ValueError, match=r"the launcher must set .*; missing: MASTER_PORT$"):
        runtime.start()
    assert not dist.is_initialized()


def test_a_second_job_does_not_read_the_keys_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = dist.HashStore()
    monkeypatch.setattr(runtime, "_store", lambda timeout: shared)
    first, first_of_rank_1 = (runtime._next_store(rank, timedelta(seconds=5)) for rank in (0, 1))
    first.set("address", "old")
    assert first_of_rank_1.get("address") == b"old"
    assert not runtime._next_store(0, timedelta(seconds=5)).check(["address"])


LEAVES = """
import atexit, sys
from rlhf.distributed import runtime

class Late:
    def __del__(self):
        print("interpreter shut down")

late = Late()
atexit.register(print, "registered")
print("printed", end=" ")
runtime.leave(3)
"""


@pytest.mark.parametrize(
    ("ranks", "printed"),
    [("1", "printed registered\ninterpreter shut down\n"), ("2", "printed registered\n")],
)
def test_several_ranks_leave_without_the_shutdown_of_the_interpreter(ranks: str, printed: str) -> None:
    """In which gloo's threads aborted about one run of two ranks in twenty, after it had finished."""
    env = {**os.environ, "WORLD_SIZE": ranks}
    done = subprocess.run(
        [sys.executable, "-c", LEAVES], env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (3, printed)
