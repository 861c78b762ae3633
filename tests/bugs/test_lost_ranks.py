"""What a run does when one of its ranks dies, hangs, or goes elsewhere: python test_lost_ranks.py FOLDER."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.distributed import collectives, runtime
from rlhf.distributed.watch import WATCH
from rlhf.metrics import Clock, Metrics
from rlhf.run_folder import RunFolder
from rlhf.trainers.loop import Cadence, run

STEP = 3
TIMEOUT = 10.0
MISSED = r"rank {} did not reach the sum over ranks \(phase update, step 3\){}: it "
GONE, HANGS = "is dead or stopped, last seen in phase", r"hangs in phase update, step 3$"
CASES = {  # what goes wrong on which rank, and what the other says of it
    "kill 0": MISSED.format(0, "") + GONE,
    "kill 1": MISSED.format(1, "") + GONE,
    "stop 0": MISSED.format(0, " within 10 s") + GONE,
    "stop 1": MISSED.format(1, " within 10 s") + GONE,
    "hang 0": MISSED.format(0, " within 10 s") + HANGS,
    "hang 1": MISSED.format(1, " within 10 s") + HANGS,
    "raise 0": MISSED.format(0, "") + "ended with: loss is nan$",
    "raise 1": MISSED.format(1, "") + "ended with: loss is nan$",
    "skip 1": r"rank \d did not reach .* \(phase \w+, step 3\).*: it waits for .*, step 3\) instead$",
    "terminate 1": MISSED.format(1, "") + GONE,
    "absent 1": r"not all 2 ranks met at 127\.0\.0\.1:\d+: ",
}


class Stage:
    """Every step meets the other ranks in two phases, and in the second something goes wrong."""

    total = 5

    def __init__(self, fault: str | None) -> None:
        self.done, self.fault = 0, fault

    def step(self) -> Metrics:
        clock, metrics = Clock(WATCH.enter), Metrics()
        with clock.phase("sample"):
            metrics.value("sum", float(collectives.all_sum(torch.ones(1))))
        with clock.phase("update"):
            skipped = self.done + 1 == STEP and self.fault is not None and commit(self.fault)
            if not skipped:
                collectives.all_sum(torch.ones(3))
        self.done += 1
        return metrics

    def evaluate(self) -> Metrics:
        return Metrics()

    def samples(self) -> list[dict[str, object]]:
        return []

    def headline(self, metrics: Mapping[str, float]) -> str:
        return ""

    def save(self, folder: Path) -> None:
        if collectives.is_main():
            (folder / "done").write_text(str(self.done))

    def load(self, folder: Path) -> None:
        self.done = int((folder / "done").read_text())

    def export(self, folder: Path) -> None:
        pass


def commit(fault: str) -> bool:
    """Do it; whether to go on without the collective."""
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault in ("stop", "terminate"):
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "raise":
        raise FloatingPointError("loss is nan")
    while fault == "hang":
        time.sleep(0.1)
    return fault == "skip"


def be_rank(rank: int, case: str, port: int, folder: Path) -> None:
    """One rank, as ``rlhf/cli/application.py`` runs it."""
    fault, culprit = case.split()
    mine = fault if rank == int(culprit) else None
    shared = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(shared, RANK=str(rank), LOCAL_RANK=str(rank))
    log = (folder / f"rank{rank}.log").open("w", buffering=1)
    if mine == "absent":
        time.sleep(60)
    try:
        timeout = timedelta(seconds=300 if fault == "terminate" else TIMEOUT)
        runtime.start(timeout=timeout, report=lambda line: log.write(f"{line}\n"))
        run(Stage(mine), RunFolder(folder, writes=False), Cadence(checkpoint_every=1), resume=False)
    except Exception as error:
        runtime.abandon(str(error))
        log.write(f"{error}\n" if isinstance(error, ValueError | ArithmeticError) else traceback.format_exc())
        runtime.leave(1)
    runtime.stop()
    runtime.leave(0)


def fork(rank: int, case: str, port: int, folder: Path) -> int:
    child = os.fork()
    if child == 0:
        be_rank(rank, case, port, folder)
    return child


def play(folder: Path) -> dict[str, Any]:
    """Every case at once, two forked ranks each: how each rank ended, and after how many seconds."""
    ranks: dict[int, tuple[str, int]] = {}
    found: dict[str, Any] = {case: {"status": {}, "seconds": {}} for case in CASES}
    for case in CASES:
        (folder / case).mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        ranks |= {fork(rank, case, port, folder / case): (case, rank) for rank in range(2)}
    start = time.monotonic()
    while ranks and time.monotonic() < start + 90:
        pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        if pid == 0:
            time.sleep(0.05)
        elif os.WIFSTOPPED(status) and ranks[pid][0] == "terminate 1":  # what a launcher does to the other
            os.kill(next(other for other, at in ranks.items() if at == ("terminate 1", 0)), signal.SIGTERM)
        elif not os.WIFSTOPPED(status):
            case, rank = ranks.pop(pid)
            found[case]["status"][rank] = os.waitstatus_to_exitcode(status)
            found[case]["seconds"][rank] = time.monotonic() - start
            stopped = [other for other, at in ranks.items() if at[0] == case]
            if case.split()[0] in ("stop", "terminate", "absent") and stopped:  # as a launcher would
                os.kill(stopped[0], signal.SIGKILL)
    for pid in ranks:
        os.kill(pid, signal.SIGKILL)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, __file__, str(folder)]
    quiet = {**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"}  # as the command has it
    done = subprocess.run(command, env=quiet, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout) | {"folder": folder, "output": done.stderr}


@pytest.mark.parametrize("case", CASES)
def test_collective_timeout_names_rank_and_phase(found: dict[str, Any], case: str) -> None:
    folder, (fault, culprit) = found["folder"] / case, case.split()
    assert not re.search("sendBytes|recvVector", found["output"])  # C++'s page on a lost store
    survivor = 1 - int(culprit)
    [line] = (folder / f"rank{survivor}.log").read_text().splitlines()
    assert re.match(CASES[case], line), line
    assert found[case]["status"][str(survivor)] == 1
    if fault in ("hang", "raise", "skip"):  # a rank that can still speak ends by itself, and says the same
        assert found[case]["status"][culprit] == 1
        [other] = (folder / f"rank{culprit}.log").read_text().splitlines()
        assert other == ("loss is nan" if fault == "raise" else line)
    else:
        assert found[case]["status"][culprit] == -signal.SIGKILL
    assert found[case]["seconds"][str(survivor)] < TIMEOUT + 30  # most of which is a busy machine's start
    if fault != "absent":
        assert (folder / "checkpoints" / f"step_{STEP - 1:06d}" / "manifest.json").is_file()


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(play(Path(sys.argv[1]))))
