"""A PPO run that is killed again and again ends where it ends undisturbed: python -m tests.kills

    python -m tests.kills                20 kills of one process, some minutes
    python -m tests.kills --ranks 2      of two ranks of the deepspeed launcher with ZeRO-2

A run with adaptive KL, several minibatches and a checkpoint after every rollout is made once without
interruption. Another of the same seed is killed by SIGKILL, all its processes at once, at random moments that
are spread evenly over it, and each time continued with ``resume=true``. Of five kills one falls into the
start of the process, one into the writing of a checkpoint and three anywhere in a rollout. At the end the
exported model, every file of the last checkpoint (weights, moments, generators, KL coefficient) and every
logged metric and sample but timings must be those of the undisturbed run, bit for bit. The exit status is 1
when they are not, or when a run ended before it could be killed as often as asked.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kills import runs

MOMENTS = ("rollout", "start", "rollout", "checkpoint", "rollout")


@dataclass
class Pace:
    """Seconds that the undisturbed run took for its parts."""

    start: float
    rollout: float
    checkpoint: float


@dataclass
class Kill:
    """A moment to come: not before ``after`` rollouts are whole, then a share of what is going on."""

    moment: str
    after: int
    share: float

    def strike(self, life: runs.Life, pace: Pace) -> bool:
        """Kill the life at its moment; False when it ended by itself."""
        if self.moment == "start":
            life.wait(lambda: life.stepping or life.age >= self.share * pace.start)
            return life.kill()
        life.wait(lambda: life.stepping and runs.last_whole(life.run) >= self.after)
        if self.moment == "checkpoint":
            life.wait(lambda: runs.being_written(life.run))
        time.sleep(self.share * (pace.checkpoint if self.moment == "checkpoint" else pace.rollout))
        return life.kill()


def plan(kills: int, rollouts: int, seed: int) -> list[Kill]:
    """One kill in each of as many equal parts of the run, but for its last rollout."""
    numbers = random.Random(seed)
    moments = [MOMENTS[number % len(MOMENTS)] for number in range(kills)]
    numbers.shuffle(moments)
    part = (rollouts - 1) / kills
    return [
        Kill(moment, int((number + numbers.random()) * part), numbers.random())
        for number, moment in enumerate(moments)
    ]


def undisturbed(job: runs.Job) -> Pace:
    """The run without a kill, and its pace."""
    life = job.start("whole")
    life.wait(lambda: life.stepping)
    start, writes = life.age, []
    while life.wait(lambda: runs.being_written(life.run)):
        begun = life.age
        life.wait(lambda: not runs.being_written(life.run))
        writes.append((begun, life.age))
    life.finish()
    rollouts = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(writes)]
    return Pace(start, statistics.median(rollouts), statistics.median(end - begun for begun, end in writes))


def disturbed(job: runs.Job, kills: Sequence[Kill], pace: Pace) -> int:
    """The run with its kills, each a row of the table; how many of them came before its end."""
    sys.stdout.write(f"{'kill':>4}  {'moment':<10}  {'whole rollouts':>14}  {'seconds':>7}  left behind\n")
    run = job.folder / "runs" / "killed"
    for number, kill in enumerate(kills, 1):
        life = job.start("killed")
        if not kill.strike(life, pace):
            life.finish()
            return number - 1
        left = "a checkpoint half written" if runs.being_written(run) else ""
        row = f"{number:>4}  {kill.moment:<10}  {runs.last_whole(run):>14}  {life.age:>7.1f}  {left}"
        sys.stdout.write(row.rstrip() + "\n")
        sys.stdout.flush()
    life = job.start("killed")
    life.finish()
    sys.stdout.write(f"{'–':>4}  {'end':<10}  {runs.last_whole(run):>14}  {life.age:>7.1f}\n")
    return len(kills)


def compared(folder: Path) -> list[str]:
    """What differs between the two runs."""
    whole, killed = (runs.left_behind(folder / "runs" / name) for name in ("whole", "killed"))
    return [name for name in {**whole, **killed} if not runs.same(whole.get(name), killed.get(name))]


def examine(folder: Path, given: argparse.Namespace) -> int:
    job = runs.Job(folder=folder, ranks=given.ranks, rollouts=2 * given.kills)
    runs.prepare(folder)
    pace = undisturbed(job)
    sys.stdout.write(
        f"undisturbed, {given.ranks} rank(s): {job.rollouts} rollouts of {pace.rollout:.2f} s, "
        f"start {pace.start:.1f} s, a checkpoint {1000 * pace.checkpoint:.0f} ms\n"
    )
    sys.stdout.flush()
    landed = disturbed(job, plan(given.kills, job.rollouts, given.seed), pace)
    different = compared(folder)
    kept = len(runs.left_behind(folder / "runs" / "whole"))
    sys.stdout.write(f"{landed} of {given.kills} kills; {len(different)} of {kept} results differ")
    sys.stdout.write(": " + ", ".join(different) + "\n" if different else ", bit for bit\n")
    return 1 if different or landed < given.kills else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kills")
    parser.add_argument("--kills", type=int, default=20, help="how often the run is killed")
    parser.add_argument("--ranks", type=int, default=1, help="1, or several on the deepspeed launcher")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        return examine(Path(folder), given)


if __name__ == "__main__":
    sys.exit(main())
