"""Models as ordinary Hugging Face folders, which ``transformers`` loads by itself to the same numbers."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.conversion_mapping import get_model_conversion_mapping

from rlhf.models.actor import Actor
from rlhf.models.lora import BASE, PARTS, merged, own_name
from rlhf.models.quiet import quiet
from rlhf.models.scalar import ScalarModel
from rlhf.models.score_shift import SHIFT, ScoreScale, with_shift
from rlhf.tensor_file import Kind, TensorFile, TensorStream

PREFIX = "model."
"""What the wrappers put before the names of the transformers model."""
SINGLE, NUMBERED, INDEX = (
    "model.safetensors",
    "model-{:05}-of-{:05}.safetensors",
    "model.safetensors.index.json",
)
SHARD = 5 * 10**9
"""Bytes of a shard, unless a single weight is larger."""


def save_model(
    model: Actor | ScalarModel,
    state: Mapping[str, Tensor] | TensorStream,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    replace: bool = False,
    scale: ScoreScale | None = None,
) -> None:
    """Write safetensors, configuration, generation config, tokenizer and chat template.

    The folder appears complete or not at all: it is written beside its place and renamed. Adapters are added
    to the weights that they change.

    Args:
        model: the wrapper; its own weights are not read and may be sharded.
        state: all weights, named as in ``model.state_dict()``, tied ones once or more. A stream is written as
            it comes and never held, unless transformers stores this kind of model in another layout.
        tokenizer: of the model.
        folder: where to write.
        replace: whether a folder of that name is this run's own earlier export and may go.
        scale: of a reward model, what its scores are changed to; None leaves them.

    Raises:
        ValueError: ``state`` lacks a weight or holds another.
        FileExistsError: the folder exists and ``replace`` is False.
    """
    stream = state if isinstance(state, TensorStream) else TensorStream.of(state)
    shift = _shift(model, state) if scale is None else scale.shift
    weights = _own_names(model, _whole(model, stream if scale is None else scale.applied(stream)))
    kept, weights = _with_shift(model.model, weights.without(SHIFT.removeprefix(PREFIX)), shift)
    with appearing(folder, replace=replace) as partial:
        _write(kept, weights, tokenizer, partial)


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


def _shift(model: Actor | ScalarModel, state: Mapping[str, Tensor] | TensorStream) -> float:
    """The constant of a scalar head, which every rank has whole; 0 where there is no such head."""
    if not isinstance(model, ScalarModel):
        return 0.0
    return float(model.head.shift if isinstance(state, TensorStream) else state[SHIFT])


def _with_shift(model: Any, weights: TensorStream, shift: float) -> tuple[Any, TensorStream]:
    """The transformers model and its weights, made to add the constant; they are held all at once for it."""
    if shift == 0:
        return model, weights
    held = {name: weight.to("cpu", copy=True) for name, weight in weights}
    larger, found = with_shift(model, held, shift)
    return larger, TensorStream.of(found)


def _whole(model: Actor | ScalarModel, stream: TensorStream) -> TensorStream:
    """As of a model without adapters: a weight that has one comes where the last part of it would."""
    if model.lora is None:
        return stream
    kinds: dict[str, Kind] = {}
    for name, kind in stream.kinds.items():
        wide = changed(kind, dtype=torch.promote_types(kind.dtype, torch.float32))
        if name.endswith(f"{BASE}weight"):
            held = wide if kind.dtype.is_floating_point else kind
        elif name.endswith(PARTS[1]):
            kinds[f"{name.removesuffix(PARTS[1])}.weight"] = held
        elif not name.endswith(PARTS):
            kinds[name.replace(BASE, ".")] = wide if kind.dtype.is_floating_point else kind
    return TensorStream(kinds=kinds, tensors=lambda: (tensor for _, tensor in merged(model, stream)))


def _own_names(model: Actor | ScalarModel, stream: TensorStream) -> TensorStream:
    """With the transformers model's names; of tied weights only the one that a checkpoint holds."""
    tied = {PREFIX + name for name in model.model.all_tied_weights_keys}
    expected = model.state_dict().keys() - tied
    expected = {own for name in expected if (own := own_name(name)) is not None}
    different = sorted(expected ^ (stream.kinds.keys() - tied))
    if different:
        raise ValueError(
            f"save_model: the state must hold exactly the model's weights, {different[0]} differs"
        )
    kinds = {name.removeprefix(PREFIX): kind for name, kind in stream.kinds.items() if name in expected}
    return TensorStream(kinds=kinds, tensors=lambda: (weight for name, weight in stream if name in expected))


def _write(model: Any, weights: TensorStream, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    if model.can_generate():
        generation = model.generation_config
        generation.bos_token_id, generation.pad_token_id = tokenizer.bos_token_id, model.config.pad_token_id
        generation.eos_token_id = _ends(generation.eos_token_id, tokenizer.eos_token_id)
    with quiet():
        if _stored_otherwise(model):
            state = {name: weight.to("cpu", copy=True) for name, weight in weights}
            model.save_pretrained(folder, state_dict=state)
        else:
            write_shards(folder, weights)
            if model.can_generate():
                model.generation_config.save_pretrained(folder)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = str(_dtype(weights)).removeprefix("torch.")  # of what was written
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _stored_otherwise(model: Any) -> bool:
    """Whether transformers converts this kind of model's weights when it loads them (mixtures of experts)."""
    return bool(get_model_conversion_mapping(model, add_legacy=False)) or model.is_remote_code()


def write_shards(folder: Path, weights: TensorStream) -> None:
    """Write ``model.safetensors``, or numbered shards of :data:`SHARD` bytes and their index."""
    shards: list[dict[str, Kind]] = [{}]
    for name, kind in weights.kinds.items():
        if shards[-1] and kind.bytes + sum(other.bytes for other in shards[-1].values()) > SHARD:
            shards.append({})
        shards[-1][name] = kind
    names = (
        [SINGLE] if len(shards) == 1 else [NUMBERED.format(k + 1, len(shards)) for k in range(len(shards))]
    )
    arriving = iter(weights)
    for file, kinds in zip(names, shards, strict=True):
        with TensorFile(folder / file, kinds) as shard:
            for name, weight in itertools.islice(arriving, len(kinds)):
                shard.add(name, weight)
    if len(shards) > 1:
        places = {name: file for file, kinds in zip(names, shards, strict=True) for name in kinds}
        size = sum(kind.bytes for kind in weights.kinds.values())
        index = {"metadata": {"total_size": size}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _ends(known: int | list[int] | None, own: int | None) -> int | list[int] | None:
    """All end tokens that are known, the tokenizer's among them."""
    ends = set([known] if isinstance(known, int) else known or [])
    if own is not None:
        ends.add(own)
    return sorted(ends) if len(ends) > 1 else next(iter(ends), None)


def _dtype(weights: TensorStream) -> torch.dtype:
    return next(kind.dtype for kind in weights.kinds.values() if kind.dtype.is_floating_point)


def _sync(folder: Path) -> None:
    """Bring the files to the disk before the folder gets its name."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
