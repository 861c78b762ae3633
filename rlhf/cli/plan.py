"""``rlhf plan COMMAND key=value …``: the memory that a command will take, before it is run."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from rlhf import config
from rlhf.cli.application import INPUT_ERRORS
from rlhf.cli.composition import compose
from rlhf.cli.explanation import explained
from rlhf.config import RL, SFT, Generate, Preference, Reward
from rlhf.planning.memory_plan import MemoryPlan
from rlhf.planning.offline import preference, reward, sft
from rlhf.planning.online import rl
from rlhf.planning.roles import Machine
from rlhf.planning.sampling import generate

PLANNED: dict[str, tuple[type, Callable[[Any, MemoryPlan, Machine], None]]] = {
    "sft": (SFT, sft),
    "reward": (Reward, reward),
    "preference": (Preference, preference),
    "rl": (RL, rl),
    "generate": (Generate, generate),
}
"""Commands whose memory is known before they run."""


def plan(arguments: Sequence[str]) -> int:
    """Print the table; the exit status."""
    given = _parser().parse_intermixed_args(arguments)
    machine = Machine(ranks=given.ranks, device=given.device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of transformers, to those who run models
            found = planned(given.command, given.overrides, machine)
        sys.stdout.write(found.table())
    except INPUT_ERRORS as error:
        sys.stderr.write(f"rlhf plan: {explained(given.command, error, given.overrides)}\n")
        return 1
    return 0


def planned(command: str, overrides: Sequence[str], machine: Machine) -> MemoryPlan:
    """What ``rlhf COMMAND OVERRIDES`` will hold on each rank.

    Raises:
        ValueError: the command line is wrong, or names models that are not there.
    """
    schema, _ = PLANNED[command]
    config.register({command: schema})
    raw = compose(command, overrides)
    if OmegaConf.is_missing(raw, "name"):
        raw.name = "plan"
    return plan_of(command, raw, machine)


def plan_of(command: str, raw: DictConfig, machine: Machine) -> MemoryPlan:
    """Of a configuration that was composed."""
    schema, fill = PLANNED[command]
    found = MemoryPlan(command=command, ranks=machine.ranks, device=machine.device)
    fill(config.build(raw, schema), found, machine)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlhf plan",
        usage="rlhf plan [--ranks N] [--device cpu|cuda] COMMAND key=value …",
        description="The memory that rlhf COMMAND key=value … will take on each rank, term by term; "
        "nothing is run, no weights are read, no GPU is needed.",
    )
    here = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--ranks", type=_ranks, default=1, help="processes that it will be launched with")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=here, help="what they compute on")
    parser.add_argument("command", choices=PLANNED, metavar="COMMAND", help=", ".join(PLANNED))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as the command takes them")
    return parser


def _ranks(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {count}")
    return count
