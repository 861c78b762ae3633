"""``rlhf COMMAND key=value …``: find the command and run it."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

COMMANDS = {
    "sft": "supervised fine-tuning",
    "reward": "reward-model training",
    "preference": "offline preference optimisation: DPO and its relatives",
    "rl": "online reinforcement learning",
    "distill": "on-policy distillation of a teacher, DAgger",
    "generate": "sample responses to a file of prompts; the best of n, if wanted",
    "refine": "write new responses in place of failed ones, from feedback in words",
    "score": "score a file of responses",
    "serve": "answer requests for scores over HTTP",
    "select": "turn scored responses into rows to be trained on",
    "query": "choose the pairs that people should compare next",
    "rank": "rank arms from comparisons, and measure how far annotators agree",
    "evaluate": "compare policies, and check a reward model against human labels",
    "recipe": "several commands as one: expert iteration, Quark, rounds of reward model and PPO",
}


PLAN = "plan"
"""``rlhf plan COMMAND …`` is no Hydra application: it reads the configuration of another command."""


def main() -> None:
    """Run the command that the arguments name."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported, hence here
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        sys.exit(0)
    command, *rest = arguments
    if command == "--version":
        from importlib.metadata import version

        sys.stdout.write(f"rlhf {version('rlhf')}\n")
        sys.exit(0)
    if command == PLAN:
        from rlhf.cli.plan import plan

        sys.exit(plan(rest))
    if command not in COMMANDS:
        from difflib import get_close_matches

        close = get_close_matches(command, [*COMMANDS, PLAN], n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        sys.stderr.write(
            f"rlhf: unknown command {command!r}{hint} Commands: {', '.join([*COMMANDS, PLAN])}\n"
        )
        sys.exit(2)
    from rlhf.cli.application import run
    from rlhf.distributed import runtime

    if (here := str(Path.cwd())) not in sys.path:  # as python -m has it: reward functions may lie here
        sys.path.insert(0, here)
    runtime.leave(run(command, importlib.import_module(f"rlhf.cli.{command}").COMMAND, rest))


def usage() -> str:
    """What there is to run."""
    meanings = COMMANDS | {PLAN: "the memory that rlhf COMMAND … will take, before it is run"}
    lines = [f"  rlhf {name:<10} {meaning}" for name, meaning in meanings.items()]
    return (
        "usage: rlhf COMMAND key=value …\n\n"
        + "\n".join(lines)
        + "\n\nrlhf COMMAND --help lists the keys of a command; on several GPUs, or several processes:\n"
        "  deepspeed --no_local_rank --num_gpus N --module rlhf COMMAND key=value …\n"
    )
