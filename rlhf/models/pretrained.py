"""Reading models that somebody trained; what is wrong with a folder ends in one line that names it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from rlhf.models import smollm2
from rlhf.models.adapters import CONFIG, adapters_in, with_adapter
from rlhf.models.dropout import zero_dropout_config
from rlhf.models.quiet import quiet

FILES = ("config.json", "model/config.json", CONFIG, f"adapter/{CONFIG}")
"""Where a folder of a model, or one of adapters, is known by."""


def model_folder(path: str) -> str:
    """The folder with ``config.json``: ``path``, or a run's ``model/``; or else one with adapters.

    What is no folder is a packaged model (`rlhf.models.smollm2`) or a hub name.

    Raises:
        FileNotFoundError: there is a folder of that name, or of its parent's, but no model in it; or the
            packaged model is not installed.
    """
    for file in FILES:
        if (Path(path) / file).is_file():
            return str((Path(path) / file).parent)
    if Path(path).exists():
        raise FileNotFoundError(f"{path} holds no model: it has neither config.json nor model/config.json")
    if path == smollm2.NAME:
        return smollm2.smollm2_folder()
    parts = Path(path).parts
    hub_name = len(parts) <= 2 and not path.startswith(("/", ".", "~", "runs/"))
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
    if (adapters := adapters_in(model_folder(path))) is not None:
        if adapters.classifies:
            raise ValueError(f"{path} is no language model: its adapters are a reward model's")
        _expect_same_tokens(path, tokenizer)
        return with_adapter(read_causal_lm(adapters.base, tokenizer, dtype), model_folder(path))
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
    if (adapters := adapters_in(model_folder(path))) is not None:
        if not adapters.classifies:
            raise ValueError(f"{path} is no reward model: its adapters are a language model's")
        _expect_same_tokens(path, tokenizer)
        return with_adapter(_classifier_for(adapters.base, tokenizer, dtype), model_folder(path))
    config = _read_config(path)
    _expect_classifier(path, config)
    if config.num_labels != 1:
        raise ValueError(f"{path} is no reward model: it has {config.num_labels} labels, needed is 1")
    _expect_same_tokens(path, tokenizer)
    return _read_weights(path, AutoModelForSequenceClassification, config, dtype)


def empty_causal_lm(path: str) -> Any:
    """The folder's causal language model from its configuration alone, on the default device; see `META`.

    Raises:
        FileNotFoundError: nothing is found under the path.
        ValueError: it is no causal language model.
    """
    if (adapters := adapters_in(model_folder(path))) is not None:
        return empty_causal_lm(adapters.base)
    config = _read_config(path)
    if _classifies(config):
        raise ValueError(f"{path} is no language model: its architecture is {config.architectures[0]}")
    return _empty(path, AutoModelForCausalLM, config)


def empty_classifier(path: str) -> Any:
    """The folder's reward model, or what its adapters were trained on, from its configuration alone.

    Raises:
        FileNotFoundError: nothing is found under the path.
        ValueError: it is no reward model.
    """
    if (adapters := adapters_in(model_folder(path))) is not None:
        return classifier_over(empty_causal_lm(adapters.base), adapters.base)
    config = _read_config(path)
    _expect_classifier(path, config)
    return _empty(path, AutoModelForSequenceClassification, config)


def _empty(path: str, auto: Any, config: Any) -> Any:
    try:
        with quiet():
            return auto.from_config(config, dtype=torch.float32)
    except (ValueError, ImportError) as error:
        raise ValueError(f"{path} cannot be built: {_first_line(error)}") from None


def _classifier_for(base: str, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> Any:
    """What a reward model's adapters, its head among them, were trained on."""
    adapters = adapters_in(model_folder(base))
    classifies = adapters.classifies if adapters is not None else _classifies(_read_config(base))
    if classifies:
        return read_classifier(base, tokenizer, dtype)
    return classifier_over(read_causal_lm(base, tokenizer, dtype), base)


def classifier_over(causal: Any, name: str) -> Any:
    """A one-label classifier of transformers around the backbone of a causal language model, its head 0.

    Raises:
        ValueError: transformers has none over this backbone.
    """
    config = copy.deepcopy(causal.config)
    config.num_labels = 1
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            classifier = AutoModelForSequenceClassification.from_config(config)
    except ValueError:
        raise ValueError(f"{name}: transformers has no classifier over {type(causal).__name__}") from None
    if type(classifier.base_model) is not type(causal.base_model):
        raise ValueError(
            f"{name}: {type(classifier).__name__} has another backbone than {type(causal).__name__}"
        )
    setattr(classifier, classifier.base_model_prefix, causal.base_model)
    embedding: Tensor = causal.get_input_embeddings().weight
    score = torch.nn.Linear(classifier.score.in_features, 1, bias=False, device="meta")
    score.weight = torch.nn.Parameter(
        torch.zeros_like(score.weight, device=embedding.device, dtype=embedding.dtype)
    )
    classifier.score = score
    return classifier


def _expect_classifier(path: str, config: Any) -> None:
    if not _classifies(config):
        architecture = (config.architectures or ["unknown"])[0]
        raise ValueError(
            f"{path} is no reward model: its architecture is {architecture}, "
            "needed is a …ForSequenceClassification with one label"
        )


def _classifies(config: Any) -> bool:
    return str((config.architectures or ["unknown"])[0]).endswith("ForSequenceClassification")


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
