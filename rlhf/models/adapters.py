"""Adapters by themselves, as peft's folders: what a run leaves beside, or in place of, the whole model."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf.models.actor import Actor
from rlhf.models.lora import PARTS, expect_peft
from rlhf.models.quiet import quiet
from rlhf.models.saving import PREFIX, appearing
from rlhf.models.scalar import ScalarModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
THEIRS = "base_model.model."
"""What peft puts before the names of the transformers model."""


def save_adapter(
    model: Actor | ScalarModel,
    tensors: Iterable[tuple[str, Tensor]],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    replace: bool = False,
) -> None:
    """Write ``adapter_config.json``, the adapters' weights and the tokenizer; whole or not at all.

    A scalar head goes with the adapters, as peft's ``modules_to_save``.

    Args:
        model: the wrapper, with adapters; its own weights are not read.
        tensors: names and whole tensors, as in ``model.state_dict()``; only the adapters' are held.
        tokenizer: of the model.
        folder: where to write.
        replace: whether a folder of that name is this run's own and may go.

    Raises:
        FileExistsError: the folder exists and ``replace`` is False.
    """
    assert model.lora is not None
    heads = ["score"] if isinstance(model, ScalarModel) else []
    own = (*PARTS, *(f"{PREFIX}{head}.weight" for head in heads))
    weights = {
        _their_name(name): tensor.to("cpu", copy=True) for name, tensor in tensors if name.endswith(own)
    }
    targets = sorted({name.rpartition(".lora_")[0].rpartition(".")[2] for name in weights} - {""})
    config = model.lora.config(
        targets,
        task_type="SEQ_CLS" if heads else "CAUSAL_LM",
        modules_to_save=heads or None,
        base_model_name_or_path=_lasting(model.model.config.name_or_path),
        inference_mode=True,
    )
    with appearing(folder, replace=replace) as partial:
        config.save_pretrained(partial)
        save_file(weights, partial / WEIGHTS, {"format": "pt"})
        tokenizer.save_pretrained(partial)


class Adapters(NamedTuple):
    """What a folder of adapters is for."""

    base: str
    """Path or name of the model."""
    classifies: bool
    """Whether they make a reward model of it."""


def adapters_in(folder: str) -> Adapters | None:
    """What a folder's adapters are for; None where it is no folder of adapters.

    Raises:
        ValueError: its configuration is damaged or names no model.
    """
    file = Path(folder) / CONFIG
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        base, task = config["base_model_name_or_path"], config.get("task_type")
    except (ValueError, KeyError, TypeError):
        base = task = None
    if not isinstance(base, str) or not base:
        raise ValueError(f"{file} does not say which model its adapters are for (base_model_name_or_path)")
    return Adapters(base=base, classifies=task == "SEQ_CLS")


def with_adapter(model: Any, folder: str) -> Any:
    """The transformers model with a folder's adapters added to its weights.

    Raises:
        ValueError: peft is not installed, or the adapters do not fit the model.
    """
    expect_peft()
    from peft import PeftModel

    try:
        with quiet(), torch.random.fork_rng(devices=[]), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            adapted = PeftModel.from_pretrained(model, folder)
            found = adapted.merge_and_unload(safe_merge=True)  # refuses NaN
    except (ValueError, RuntimeError, KeyError, OSError, SafetensorError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"{folder}: the adapters cannot be added to their model: {first}") from None
    for warning in said:
        if "missing adapter keys" in str(warning.message):
            raise ValueError(f"{folder}: weights of adapters are missing, see {WEIGHTS}")
    found.config.name_or_path = folder
    return found.requires_grad_(True)


def _their_name(name: str) -> str:
    return THEIRS + name.removeprefix(PREFIX).replace(".default.", ".")


def _lasting(path: str) -> str:
    """A folder's absolute path, for adapters outlive the place that they were trained from; a hub name."""
    return str(Path(path).resolve()) if Path(path).exists() else path
