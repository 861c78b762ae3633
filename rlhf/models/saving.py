"""Models as ordinary Hugging Face folders, which ``transformers`` loads by itself to the same numbers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf.models.actor import Actor
from rlhf.models.lora import merged, own_name
from rlhf.models.quiet import quiet
from rlhf.models.scalar import ScalarModel

PREFIX = "model."
"""What the wrappers put before the names of the transformers model."""


def save_model(
    model: Actor | ScalarModel,
    state: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    replace: bool = False,
) -> None:
    """Write safetensors, configuration, generation config, tokenizer and chat template.

    The folder appears complete or not at all: it is written beside its place and renamed. Adapters are added
    to the weights that they change.

    Args:
        model: the wrapper; its own weights are not read and may be sharded.
        state: all weights on the CPU, named as in ``model.state_dict()``.
        tokenizer: of the model.
        folder: where to write.
        replace: whether a folder of that name is this run's own earlier export and may go.

    Raises:
        ValueError: ``state`` lacks a weight or holds another.
        FileExistsError: the folder exists and ``replace`` is False.
    """
    weights = _own_names(model, dict(merged(model, state.items())))
    with appearing(folder, replace=replace) as partial:
        _write(model.model, weights, tokenizer, partial)


@contextmanager
def appearing(folder: Path, *, replace: bool) -> Iterator[Path]:
    """A folder to write into, which gets its name at the end of the block, its files on the disk.

    Raises:
        FileExistsError: the folder exists and ``replace`` is False.
    """
    if folder.exists() and not replace:
        raise FileExistsError(f"{folder} exists already; nothing was overwritten")
    partial, previous = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "previous"))
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(previous, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    readable = partial.stat().st_mode & 0o666  # safetensors writes files for their owner alone
    for file in partial.iterdir():
        file.chmod(readable)
    _sync(partial)
    if folder.exists():
        folder.rename(previous)
    partial.rename(folder)
    shutil.rmtree(previous, ignore_errors=True)


def _own_names(model: Actor | ScalarModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The transformers model's names; of tied weights only the one that a checkpoint holds."""
    tied = {PREFIX + name for name in model.model.all_tied_weights_keys}
    expected = {own for name in model.state_dict() if (own := own_name(name)) is not None} - tied
    different = sorted(expected ^ (state.keys() - tied))
    if different:
        raise ValueError(
            f"save_model: the state must hold exactly the model's weights, {different[0]} differs"
        )
    return {name.removeprefix(PREFIX): state[name].contiguous() for name in sorted(expected)}


def _write(model: Any, weights: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    if model.can_generate():
        generation = model.generation_config
        generation.bos_token_id, generation.pad_token_id = tokenizer.bos_token_id, model.config.pad_token_id
        generation.eos_token_id = _ends(generation.eos_token_id, tokenizer.eos_token_id)
    with quiet():
        model.save_pretrained(folder, state_dict=dict(weights))
    model.config.dtype = str(_dtype(weights.values())).removeprefix("torch.")  # of what was written
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _ends(known: int | list[int] | None, own: int | None) -> int | list[int] | None:
    """All end tokens that are known, the tokenizer's among them."""
    ends = set([known] if isinstance(known, int) else known or [])
    if own is not None:
        ends.add(own)
    return sorted(ends) if len(ends) > 1 else next(iter(ends), None)


def _dtype(weights: Iterable[Tensor]) -> torch.dtype:
    return next(weight.dtype for weight in weights if weight.is_floating_point())


def _sync(folder: Path) -> None:
    """Bring the files to the disk before the folder gets its name."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
