"""Calling a function that somebody else wrote: every way in which it can go wrong ends in one line."""

from __future__ import annotations

import importlib
import math
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from rlhf.rewards.sources import RewardSource
from rlhf.rewards.time_limit import TimeLimitError, time_limit

ScoreFunction = Callable[[list[str], list[str], list[dict[str, Any]]], Sequence[float]]
"""(prompts, responses, the prompts' other columns) → one number a response."""


def import_function(path: str) -> ScoreFunction:
    """The function at ``package.module:name``.

    Raises:
        ValueError: no such module or name, or not callable.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ValueError(f"a function is given as package.module:name, got {path!r}")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import {path}: {error}") from error
    except Exception as error:  # whatever a module may do while it is imported
        raise ValueError(f"cannot import {path}: {_said(error)}") from error
    if not callable(function):
        raise ValueError(f"{path} is a {type(function).__name__}, not a function")
    return function


def call_function(
    function: ScoreFunction,
    prompts: list[str],
    responses: list[str],
    columns: list[dict[str, Any]],
    *,
    name: str,
    timeout_seconds: float | None = None,
) -> Any:
    """What ``function`` returns.

    Raises:
        ValueError: it raised, or took longer than ``timeout_seconds``; says where in its own file.
    """
    try:
        with _limit(timeout_seconds):
            return function(prompts, responses, columns)
    except TimeLimitError as late:
        what = f"{name} took longer than {timeout_seconds:g} s over {len(responses)} responses"
        raise ValueError(what + _place(function, late)) from late
    except Exception as error:
        cases = list(zip(prompts, responses, columns, strict=True))
        culprit = _culprit(function, cases, timeout_seconds)
        ours = isinstance(function, RewardSource) and type(error) is ValueError  # a line of its own
        what = f": {error}" if ours else f" raised {_said(error)}{_place(function, error)}"
        raise ValueError(f"{name}{what}{culprit}") from error


def as_scores(scores: Any, rows: int, name: str) -> Tensor:
    """A function's answer as a (B,) float32 tensor.

    Raises:
        ValueError: not ``rows`` numbers.
    """
    try:
        tensor = torch.as_tensor(scores, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"{name} must return a list of {rows} numbers, got {_unlike_numbers(scores)}"
        ) from error
    if tuple(tensor.shape) != (rows,):
        raise ValueError(f"{name} returned scores of shape {tuple(tensor.shape)} for {rows} responses")
    return tensor


def _limit(seconds: float | None) -> AbstractContextManager[None]:
    return nullcontext() if seconds is None else time_limit(seconds)


def _said(error: BaseException) -> str:
    """Type and message in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


def _place(function: ScoreFunction, error: BaseException) -> str:
    """The last line of the function's own file that was running."""
    code = getattr(function, "__code__", None)
    frames = [] if code is None else traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if code is not None and frame.filename == code.co_filename]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""


def _culprit(
    function: ScoreFunction, cases: list[tuple[str, str, dict[str, Any]]], timeout_seconds: float | None
) -> str:
    """The first response that the function raises on when it sees it alone; nothing where there is none."""
    row = 0
    try:
        with _limit(timeout_seconds):
            for prompt, response, column in cases:
                function([prompt], [response], [column])
                row += 1
    except TimeLimitError:
        return ""
    except Exception:  # the very error that is being reported
        return f" on response {row}, prompt {cases[row][0]!r}"
    return ""


def _unlike_numbers(scores: Any) -> str:
    """What was returned, as far as it is wrong."""
    if not isinstance(scores, list | tuple):
        return type(scores).__name__
    for row, score in enumerate(scores):
        try:
            math.isfinite(score)
        except (TypeError, ValueError, OverflowError):
            return f"{score!r} for response {row}"
    return type(scores).__name__
