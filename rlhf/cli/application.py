"""A command as a Hydra application: compose, build, run; errors of input end in one line."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlhf import config
from rlhf.cli.help import describe
from rlhf.distributed import runtime
from rlhf.trainers.loop import Interrupted

CONF = "pkg://rlhf.conf"
INPUT_ERRORS = (ValueError, OSError, FloatingPointError, HydraException, OmegaConfBaseException)


@dataclass(kw_only=True, slots=True)
class Place:
    """Where and as whom a job runs."""

    runtime: runtime.Runtime
    folder: Path
    resolved: str
    """The configuration as YAML, every interpolation replaced."""


@dataclass(kw_only=True, slots=True)
class Command:
    """A schema and what is done with it."""

    schema: type
    job: Callable[[Any, Place], None]


def run(name: str, command: Command, arguments: list[str]) -> int:
    """Run ``rlhf NAME ARGUMENTS``; the exit status."""
    config.register({name: command.schema})
    if "--help" in arguments or "-h" in arguments:
        overrides = [word for word in arguments if word not in ("--help", "-h")]
        return _reported(name, lambda: sys.stdout.write(describe(name, overrides, CONF)))
    wants_traceback = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us, not to Hydra's printer
    sys.argv = [f"rlhf {name}", *arguments]
    application = hydra.main(version_base="1.3", config_path=CONF, config_name=name)(
        lambda raw: _job(name, command, raw, wants_traceback)
    )
    try:
        return _reported(name, application, wants_traceback)
    except SystemExit as leaving:  # a job that failed, or Hydra's parser of flags
        return leaving.code if isinstance(leaving.code, int) else 1


def _job(name: str, command: Command, raw: DictConfig, wants_traceback: bool) -> None:
    """One job; a failure leaves at once, so that Hydra adds nothing to our line."""
    status = _reported(name, lambda: _run_job(command, raw), wants_traceback)
    if status:
        sys.exit(status)


def _run_job(command: Command, raw: DictConfig) -> None:
    resolved = OmegaConf.to_yaml(raw, resolve=True)
    built = config.build(raw, command.schema)
    minutes = getattr(built, "timeout_minutes", 30.0)
    place = Place(
        runtime=runtime.start(timeout=timedelta(minutes=minutes)),
        folder=Path(HydraConfig.get().runtime.output_dir),
        resolved=resolved,
    )
    level = logging.INFO if place.runtime.rank == 0 else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr, force=True)
    try:
        command.job(built, place)
    finally:
        runtime.stop()


def _reported(name: str, action: Callable[[], object], wants_traceback: bool = False) -> int:
    """Run ``action``; an error of input becomes one line on stderr and status 1."""
    try:
        action()
    except Interrupted as stop:
        _say(name, str(stop))
        return 128 + stop.number
    except INPUT_ERRORS as error:
        if wants_traceback:
            traceback.print_exc()
        _say(name, explained(name, error))
        return 1
    return 0


def _say(name: str, message: str) -> None:
    rank = f" [rank {os.environ['RANK']}]" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    sys.stderr.write(f"rlhf {name}{rank}: {message}\n")


def explained(name: str, error: BaseException) -> str:
    """The error in one line, with the nearest real key or option where one was misspelt."""
    text = " ".join(str(error).split())
    if match := re.search(r"Could not (?:override|delete) '([^']+)'", text):
        return f"unknown key {match[1]}{config.nearest(match[1], _known(name))}"
    if match := re.search(r"Could not find '([^']+)' Available options in '([^']+)': (.*)", text):
        group, _, option = match[1].rpartition("/")
        options = match[3].partition("Config search path")[0].split()
        listed = ", ".join(options)
        return f"{group} has no option {option!r}{config.nearest(option, options)}; there are {listed}"
    if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
        cause = str(error.__cause__).strip().partition("\n")[0]  # the lines after it repeat the key
        return f"{text}: {cause}"
    return text or type(error).__name__


def _known(name: str) -> list[str]:
    """Every key of the command's default configuration, and every group."""
    with hydra.initialize_config_module("rlhf.conf", version_base="1.3"):
        return sorted({*config.keys(hydra.compose(config_name=name)), *config.GROUPS})
