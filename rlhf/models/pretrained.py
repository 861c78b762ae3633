"""Reading models that somebody trained; what is wrong with a folder ends in one line that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from rlhf.models.dropout import zero_dropout_config
from rlhf.models.quiet import quiet


def model_folder(path: str) -> str:
    """The folder with ``config.json``: ``path``, or a run's ``model/``; what is no folder is a hub name.

    Raises:
        FileNotFoundError: there is a folder of that name, or of its parent's, but no model in it.
    """
    for folder in (Path(path), Path(path) / "model"):
        if (folder / "config.json").is_file():
            return str(folder)
    if Path(path).exists():
        raise FileNotFoundError(f"{path} holds no model: it has neither config.json nor model/config.json")
    parts = Path(path).parts
    hub_name = len(parts) <= 2 and not path.startswith(("/", ".", "~"))
    if not hub_name or (len(parts) == 2 and Path(path).parent.exists()):
        raise FileNotFoundError(f"{path} does not exist: no such run or model folder")
    return path


def read_causal_lm(path: str, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> Any:
    """The causal language model of a folder, dropout zero.

    Raises:
        FileNotFoundError: nothing is found under the path.
        ValueError: it is no causal language model, its weights are incomplete, do not fit or are not
            finite, or its own tokenizer numbers the tokens otherwise.
    """
    config = _read_config(path)
    for architecture in config.architectures or ():
        if architecture.endswith("ForSequenceClassification"):
            raise ValueError(f"{path} is no language model: its architecture is {architecture}")
    _expect_same_tokens(path, tokenizer)
    return _read_weights(path, AutoModelForCausalLM, config, dtype)


def read_classifier(path: str, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> Any:
    """The reward model of a folder, its trained head included, dropout zero.

    Raises:
        FileNotFoundError: nothing is found under the path.
        ValueError: it is no reward model, or as for :func:`read_causal_lm`.
    """
    config = _read_config(path)
    architecture = (config.architectures or ["unknown"])[0]
    if not architecture.endswith("ForSequenceClassification"):
        raise ValueError(
            f"{path} is no reward model: its architecture is {architecture}, "
            "needed is a …ForSequenceClassification with one label"
        )
    if config.num_labels != 1:
        raise ValueError(f"{path} is no reward model: it has {config.num_labels} labels, needed is 1")
    _expect_same_tokens(path, tokenizer)
    return _read_weights(path, AutoModelForSequenceClassification, config, dtype)


def _read_config(path: str) -> Any:
    folder = model_folder(path)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"{path} holds no readable model: {_first_line(error)}") from None
    zero_dropout_config(config)
    return config


def _read_weights(path: str, auto: Any, config: Any, dtype: torch.dtype) -> Any:
    try:
        with quiet():
            model, info = auto.from_pretrained(
                model_folder(path),
                config=config,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, in one line
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be loaded: {_first_line(error)}") from None
    _expect_complete(path, info)
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise ValueError(f"{path}: weight {name} holds NaN or infinite numbers")
    return model


def _expect_complete(path: str, info: dict[str, Any]) -> None:
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if "score.weight" in missing:
        raise ValueError(f"{path} is no reward model: its weights lack the head, score.weight")
    if missing:
        raise ValueError(f"{path}: {len(missing)} weights are missing, the first is {missing[0]}")
    for name, found, needed in sorted(info["mismatched_keys"]):
        raise ValueError(f"{path}: weight {name} has shape {tuple(found)}, expected {tuple(needed)}")
    if unexpected:
        raise ValueError(
            f"{path}: {len(unexpected)} weights are not the model's, the first is {unexpected[0]}"
        )


def _expect_same_tokens(path: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """The folder's own tokenizer must number its tokens as the given one does; hub names are trusted."""
    folder = model_folder(path)
    if not (Path(folder) / "tokenizer_config.json").is_file():
        return
    with quiet():
        own = AutoTokenizer.from_pretrained(folder).get_vocab()
    given = tokenizer.get_vocab()
    different = sum(given.get(token) != number for token, number in own.items())
    if different:
        raise ValueError(
            f"the tokenizer does not fit {path}: {different} of the {len(own)} tokens "
            "of the tokenizer saved there have another number or none"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
