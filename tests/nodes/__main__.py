"""Two launchers as two nodes on this machine: python -m tests.nodes

Each is `launch/multi_node.sh` with a number of its own, and they meet over the loopback interface. One of
them is killed by SIGKILL with everything it has started, once there is a checkpoint: the other must end by
itself within a minute, with a line that names the lost rank. `launch/single_node.sh` then continues the run
on one process, and its losses must be those of a run in one process that nobody disturbed, within 1e-5.
The same for two nodes that `launch/slurm.sbatch` starts, with stand-ins for scontrol and srun. The exit
status is 1 when something of it fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.kills import runs

ROOT = Path(__file__).parents[2]
STEPS = 40
MINUTE = 60.0
SFT = [word for word in runs.SFT[2:] if not word.startswith(("data.path", "engine"))]
STAND_INS = {
    "scontrol": '#!/bin/sh\nprintf "node0\\nnode1\\n"\n',
    "srun": """#!/usr/bin/env bash
shift
SLURM_NODEID=0 "$@" &
first=$!
SLURM_NODEID=1 "$@"
wait $first
""",
}
"""Of Slurm: two nodes, and a task on each."""


class Node:
    """A launcher with all that it starts."""

    def __init__(self, folder: Path, name: str, script: str, command: list[str], **environment: str) -> None:
        clean = {key: value for key, value in os.environ.items() if key not in runs.PLACE}
        clean |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        self.log = folder / f"{name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["bash", str(ROOT / "launch" / script), *command],
                cwd=ROOT,
                env=clean | environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        """Whether the launcher has not ended."""
        return self.process.poll() is None

    def kill(self) -> None:
        """All processes at once, as when a machine is switched off."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def wait(event: Callable[[], bool], seconds: float) -> bool:
    """Whether it happens within so many seconds."""
    until = time.monotonic() + seconds
    while not event() and time.monotonic() < until:
        time.sleep(0.05)
    return event()


def free_port() -> str:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


class Trial:
    """The runs in a folder, and what was found wrong with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: list[str] = []
        lines = [json.dumps({"prompt": f"{word} ", "response": f"{word} film"}) for word in runs.WORDS * 4]
        (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
        (folder / "hostfile").write_text("node0 slots=1\nnode1 slots=1\n")

    def command(self, name: str, *more: str) -> list[str]:
        """The arguments of a run in this folder."""
        run = self.folder / "runs" / name
        rows = [
            f"data.path={self.folder / 'rows.jsonl'}",
            f"hydra.run.dir={run}",
            "cadence.checkpoint_every=5",
        ]
        return ["sft", *SFT, *rows, "engine=zero2", f"epochs={STEPS / 5}", *more]

    def nodes(self, name: str, engine: str = "zero2") -> list[Node]:
        """The two launchers of a run."""
        shared = {"HOSTFILE": str(self.folder / "hostfile"), "MASTER_ADDR": "127.0.0.1"}
        shared["MASTER_PORT"] = free_port()
        command = self.command(name, f"engine={engine}")
        return [
            Node(self.folder, f"{name} node {k}", "multi_node.sh", command, NODE_RANK=str(k), **shared)
            for k in range(2)
        ]

    def finish(self, node: Node, what: str) -> None:
        """Wait for a good end."""
        if not wait(lambda: not node.running, runs.LIMIT):
            node.kill()
        self.expect(node.process.returncode == 0, f"{what} ended well", node)

    def expect(self, holds: bool, what: str, node: Node | None = None) -> None:
        """Report a claim, and what a launcher said where it does not hold."""
        sys.stdout.write(f"{'ok   ' if holds else 'WRONG'}  {what}\n")
        sys.stdout.flush()
        if not holds:
            self.faults.append(what)
            sys.stdout.write("" if node is None else node.log.read_text())

    def losses(self, name: str) -> list[float]:
        """Of every step that was logged."""
        file = self.folder / "runs" / name / "metrics.jsonl"
        return [json.loads(line)["loss"] for line in file.open()]

    def lose_one(self, name: str, lost: int) -> None:
        """Kill one of two nodes after a checkpoint; continue on one process."""
        nodes, run = self.nodes(name), self.folder / "runs" / name
        begun = wait(lambda: runs.last_whole(run) > 0 or not all(n.running for n in nodes), runs.LIMIT)
        self.expect(begun and all(n.running for n in nodes), "two launchers train one run", nodes[0])
        killed = time.monotonic()
        nodes[lost].kill()
        other = nodes[1 - lost]
        ended = wait(lambda: not other.running, MINUTE)
        self.expect(
            ended, f"node {lost} is killed: node {1 - lost} ends in {time.monotonic() - killed:.0f} s", other
        )
        if not ended:
            other.kill()
        lines = re.findall(rf"rlhf sft \[.*rank {lost} did not reach.*", other.log.read_text())
        self.expect(len(lines) > 0, f"it says: {lines[0] if lines else 'nothing'}", other)
        done = runs.last_whole(run)
        port = free_port()
        again = Node(
            self.folder,
            f"{name} again",
            "single_node.sh",
            self.command(name, "resume=true"),
            GPUS="1",
            MASTER_PORT=port,
        )
        self.finish(again, f"one process, continued from step {done} of {STEPS},")
        self.compare(name)

    def slurm(self) -> None:
        """Two nodes that the batch script starts."""
        tools = self.folder / "tools"
        tools.mkdir()
        for name, text in STAND_INS.items():
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        node = Node(
            self.folder,
            "slurm",
            "slurm.sbatch",
            self.command("slurm"),
            PATH=f"{tools}:{os.environ['PATH']}",
            SLURM_SUBMIT_DIR=str(ROOT),
            SLURM_JOB_NODELIST="node[0-1]",
            SLURM_JOB_ID="7",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=free_port(),
        )
        self.finish(node, "launch/slurm.sbatch on two nodes")
        self.compare("slurm")

    def compare(self, name: str) -> None:
        """Hold a run's losses against those of the one that nobody disturbed."""
        whole, found = self.losses("whole"), self.losses(name)
        gap = max((abs(a - b) for a, b in zip(whole, found, strict=False)), default=float("inf"))
        same = len(whole) == len(found) == STEPS and gap <= 1e-5
        self.expect(same, f"{len(found)} losses, the largest difference {gap:.0e}")


def main() -> int:
    about = argparse.ArgumentParser(
        prog="python -m tests.nodes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    about.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder))
        alone = Node(
            trial.folder, "whole", "single_node.sh", trial.command("whole"), GPUS="1", MASTER_PORT=free_port()
        )
        trial.finish(alone, "one process, undisturbed,")
        for lost in (1, 0):
            trial.lose_one(f"lost {lost}", lost)
        trial.slurm()
    sys.stdout.write(f"{len(trial.faults)} claims do not hold\n")
    return 1 if trial.faults else 0


if __name__ == "__main__":
    sys.exit(main())
