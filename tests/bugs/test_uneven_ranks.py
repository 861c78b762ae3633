"""Two ranks under ZeRO-3 whose responses end at very different times: python test_uneven_ranks.py FOLDER.

On rank 0 any token ends a response, on rank 1 none does, and a token takes it a tenth of a second. Once it
comes to an end, and once it hangs in the middle of a response.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.distributed import collectives, runtime
from rlhf.distributed.engine_config import ZeRO
from rlhf.distributed.watch import WATCH
from rlhf.rollout.decoding import Sampling
from rlhf.rollout.sampler import Sampler
from rlhf.run_folder import RunFolder
from rlhf.trainers.loop import Cadence, run

pytestmark = pytest.mark.slow
T, TOKEN = 20, 0.1
TIMEOUT = 30.0
"""Seconds; more than DeepSpeed takes to start on a busy machine."""
CASES = ("uneven", "stuck")


@contextmanager
def longest_wait() -> Iterator[list[float]]:
    """Seconds that this rank waits for the other in its longest meeting."""
    found, meeting = [0.0], WATCH.meeting

    @contextmanager
    def timed(what: str) -> Iterator[None]:
        start = time.monotonic()
        with meeting(what):
            yield
        found[0] = max(found[0], time.monotonic() - start)

    WATCH.meeting = timed  # type: ignore[method-assign]
    yield found
    WATCH.meeting = meeting  # type: ignore[method-assign]


def trainer_of(toy: Any, rank: int, *, hangs: bool) -> Any:
    """Three rollouts of two prompts a rank."""
    trainer = toy.policy_gradient(
        engine=ZeRO(stage=3, clip=None, persistence_threshold=0), prompts=4, new_tokens=T, total=3
    )
    ends = [len(toy.WORDS)] if rank else list(range(len(toy.WORDS)))
    trainer.collector.sampler = Sampler(
        decoding=Sampling(max_new_tokens=T, temperature=0.9), end_ids=ends, pad_id=toy.PAD + 99
    )
    own, steps = trainer.models.sampling_actor, [0]

    def slow(*_: Any) -> None:
        steps[0] += 1
        time.sleep(TOKEN)
        while hangs and steps[0] > T + T // 2:  # in the middle of the second rollout
            time.sleep(TOKEN)

    def slowed() -> Any:
        plain = own()
        if rank and not plain.head._forward_pre_hooks:
            plain.head.register_forward_pre_hook(slow)
        return plain

    trainer.collector.sampling_actor = slowed
    return trainer


def be_rank(rank: int, case: str, port: int, folder: Path) -> None:
    """One rank, as ``rlhf/cli/application.py`` runs it."""
    shared = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(shared, RANK=str(rank), LOCAL_RANK=str(rank))
    log = (folder / f"rank{rank}.log").open("w", buffering=1)
    try:
        from tests.trainers import toy

        runtime.start(timeout=timedelta(seconds=TIMEOUT), report=lambda line: log.write(f"{line}\n"))
        trainer = trainer_of(toy, rank, hangs=case == "stuck" and rank == 1)
        collectives.all_sum(torch.ones(1))  # both have started
        with longest_wait() as waited:
            run(trainer, RunFolder(folder, writes=rank == 0), Cadence(checkpoint_every=0), resume=False)
        log.write(json.dumps({"waited": waited[0]}) + "\n")
    except BaseException as error:
        runtime.abandon(str(error))
        log.write(traceback.format_exc())
        runtime.leave(1)
    runtime.stop()
    runtime.leave(0)


def play(folder: Path) -> dict[str, Any]:
    """Both cases at once, two forked ranks each: how each rank ended."""
    ranks: dict[int, str] = {}
    for case in CASES:
        (folder / case).mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank in range(2):
            child = os.fork()
            if child == 0:
                be_rank(rank, case, port, folder / case)
            ranks[child] = f"{case} {rank}"
    found, start = {}, time.monotonic()
    while ranks and time.monotonic() < start + 150:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            time.sleep(0.05)
        else:
            found[ranks.pop(pid)] = os.waitstatus_to_exitcode(status)
    for pid in ranks:
        os.kill(pid, signal.SIGKILL)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ranks")
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR", "CC": "false", "CXX": "false", "CUDA_VISIBLE_DEVICES": ""}
    quiet |= {"TORCH_EXTENSIONS_DIR": str(folder / "extensions"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        env={**os.environ, **quiet, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    logs = {
        f"{case} {rank}": (folder / case / f"rank{rank}.log").read_text()
        for case in CASES
        for rank in range(2)
    }
    return {"status": json.loads(done.stdout.splitlines()[-1]), "logs": logs, "folder": folder}


def test_ranks_whose_responses_end_at_different_times_finish_together(found: dict[str, Any]) -> None:
    assert [found["status"][f"uneven {rank}"] for rank in range(2)] == [0, 0], found["logs"]
    lines = (found["folder"] / "uneven" / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    assert [line["rollout/length"] for line in metrics] == [(1 + T) / 2] * 3
    waited = [json.loads(found["logs"][f"uneven {rank}"])["waited"] for rank in range(2)]
    assert 0.8 * T * TOKEN < waited[0] < TIMEOUT  # at the end of the rollout, once
    assert waited[1] < TIMEOUT


def test_a_rank_stuck_in_a_response_is_named(found: dict[str, Any]) -> None:
    assert [found["status"][f"stuck {rank}"] for rank in range(2)] == [1, 1], found["logs"]
    message = (
        r"rank 1 did not reach the sum over ranks \(phase other, step 2\) within 30 s: "
        "it hangs in phase sample, step 2"
    )
    for rank in range(2):
        [line] = found["logs"][f"stuck {rank}"].splitlines()
        assert re.fullmatch(message, line), line


if __name__ == "__main__":
    torch.set_num_threads(1)

    sys.stdout.write("\n" + json.dumps(play(Path(sys.argv[1]))))
