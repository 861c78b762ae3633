"""A command as a Hydra application: compose, build, run; errors of input end in one line."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlhf import config
from rlhf.cli.explanation import explained
from rlhf.cli.help import describe
from rlhf.cli.out_of_memory import OutOfMemory, first_line, is_out_of_memory, memory_table
from rlhf.distributed import runtime
from rlhf.recipes.process import StageEnded
from rlhf.trainers.loop import Interrupted

INPUT_ERRORS = (ValueError, OSError, FloatingPointError, HydraException, OmegaConfBaseException)


@dataclass(kw_only=True, slots=True)
class Place:
    """Where and as whom a job runs."""

    runtime: runtime.Runtime
    folder: Path
    resolved: str
    """The configuration as YAML, every interpolation replaced."""
    environment: dict[str, str] = field(default_factory=dict)
    """That the user gave, for processes that the job starts."""


@dataclass(kw_only=True, slots=True)
class Command:
    """A schema and what is done with it."""

    schema: type
    job: Callable[[Any, Place], None]


def run(name: str, command: Command, arguments: list[str]) -> int:
    """Run ``rlhf NAME ARGUMENTS``; the exit status."""
    environment = dict(os.environ)
    config.register({name: command.schema})
    if "--help" in arguments or "-h" in arguments:
        overrides = [word for word in arguments if word not in ("--help", "-h")]
        return _reported(name, overrides, lambda: sys.stdout.write(describe(name, overrides)))
    wants_traceback = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us, not to Hydra's printer
    sys.argv = [f"rlhf {name}", *arguments]
    report = partial(_reported, name, arguments, wants_traceback=wants_traceback)
    application = hydra.main(version_base="1.3", config_path=f"pkg://{config.CONF}", config_name=name)(
        lambda raw: _job(report, lambda: _run_job(name, command, raw, environment))
    )
    try:
        return report(application)
    except SystemExit as leaving:  # a job that failed, or Hydra's parser of flags
        return leaving.code if isinstance(leaving.code, int) else 1
    finally:
        if not wants_traceback:
            del os.environ["HYDRA_FULL_ERROR"]


def _job(report: Callable[[Callable[[], object]], int], action: Callable[[], object]) -> None:
    """One job; a failure leaves at once, so that Hydra adds nothing to our line."""
    status = report(action)
    if status:
        sys.exit(status)


def _run_job(name: str, command: Command, raw: DictConfig, environment: dict[str, str]) -> None:
    resolved = OmegaConf.to_yaml(raw, resolve=True)
    built: Any = config.build(raw, command.schema)
    minutes = getattr(built, "timeout_minutes", 30.0)
    place = Place(
        runtime=runtime.start(timeout=timedelta(minutes=minutes), report=partial(_say, name)),
        folder=Path(HydraConfig.get().runtime.output_dir),
        resolved=resolved,
        environment=environment,
    )
    level = logging.INFO if place.runtime.rank == 0 else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr, force=True)
    try:
        command.job(built, place)
    except Interrupted:
        runtime.stop()
        raise
    except BaseException as error:
        runtime.abandon(f"{type(error).__name__}: {error}")
        if is_out_of_memory(error):
            traceback.clear_frames(error.__traceback__)  # what they hold is what is lacking
            raise OutOfMemory(first_line(error), memory_table(name, raw, place.runtime)) from None
        raise
    runtime.stop()


def _reported(
    name: str, arguments: Sequence[str], action: Callable[[], object], *, wants_traceback: bool = False
) -> int:
    """Run ``action``; an error of input becomes one line on stderr and status 1."""
    try:
        action()
    except Interrupted as stop:
        _say(name, str(stop))
        return 128 + stop.number
    except StageEnded as end:
        _say(name, str(end))
        return end.status
    except OutOfMemory as full:
        _say(name, str(full))
        sys.stderr.write(full.table)
        return 1
    except INPUT_ERRORS as error:
        if wants_traceback:
            traceback.print_exc()
        _say(name, explained(name, error, arguments))
        return 1
    except (Exception, KeyboardInterrupt):
        if runtime.alone():
            raise
        traceback.print_exc()  # no more than that, for several ranks leave in a way of their own
        return 1
    return 0


def _say(name: str, message: str) -> None:
    sys.stderr.write(f"rlhf {name}{runtime.rank_label()}: {message}\n")
