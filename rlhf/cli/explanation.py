"""An error of input in one line, with the nearest real key or option where one was misspelt."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra.errors import ConfigCompositionException, HydraException
from omegaconf.errors import OmegaConfBaseException

from rlhf.cli.composition import compose, groups, keys, nearest, options
from rlhf.cli.help import documentation
from rlhf.config import GROUPS


def explained(name: str, error: BaseException, arguments: Sequence[str]) -> str:
    """What was wrong with the input of ``rlhf NAME ARGUMENTS``, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _of_composition(name, error, text, arguments)
    return text


def _of_composition(name: str, error: BaseException, text: str, arguments: Sequence[str]) -> str:
    if word := getattr(error, "override", None):
        return f"{word!r} is not KEY=VALUE: {str(error).partition(chr(10))[0]}"
    if match := re.search(r"Could not (?:override|delete) '([^']+)'", text):
        return _unknown_key(match[1], name, arguments)
    if (match := re.search(r"Error merging override ([\w.]+)=", text)) and _wants_fields(error):
        return _unknown_key(match[1], name, arguments)
    if match := re.search(r"Could not find '([^']+)'", text) or re.search(
        r"In '([^']+)': .* is not a subclass of", text
    ):
        return _unknown_option(match[1], name)
    if match := re.search(r"Key '\w+' not in '(\w+)' full_key: (\S+)", text):
        return (
            f"unknown key {match[2]}: a file or preset sets it, but the {match[1]} chosen has no such field"
        )
    if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
        cause = str(error.__cause__).strip().partition("\n")[0]  # the lines after it repeat the key
        return f"{text}: {cause}"
    return text


def _wants_fields(error: BaseException) -> bool:
    """Whether a word was given where fields are."""
    return "is not a subclass of" in str(error.__cause__)


def _unknown_key(key: str, name: str, arguments: Sequence[str]) -> str:
    parent, _, leaf = key.rpartition(".")
    group = parent.replace(".", "/")
    owners = [
        f"{group}={option}"
        for option, component in GROUPS.get(group, {}).items()
        if leaf in documentation(component)
    ]
    if owners:
        return f"unknown key {key}: it goes with {' or '.join(owners)}"
    known = _known(name, arguments)
    if fields := [other for other in known if other.startswith(f"{key}.")]:
        return f"{key} is no choice of rlhf {name}; its fields are {', '.join(fields)}"
    return f"unknown key {key}{nearest(key, known)}"


def _unknown_option(path: str, name: str) -> str:
    """For a choice that no group has, e.g. ``algorithm/pppo``, or none that the command takes."""
    group = next((known for known in groups() if path.startswith(f"{known}/")), None)
    if group is None:
        return f"there is no {path}"
    option, known = path.removeprefix(f"{group}/"), options(group, compose(name))
    return f"{group} has no option {option!r}{nearest(option, known)}; there are {', '.join(known)}"


def _known(name: str, arguments: Sequence[str]) -> list[str]:
    """Every key of the command under the choices that were made, and every group."""
    known = groups()
    choices = [word for word in arguments if word.partition("=")[0] in known]
    try:
        composed = compose(name, choices)
    except (HydraException, OmegaConfBaseException):  # a choice was wrong as well
        composed = compose(name)
    return sorted({*keys(composed), *known})
