"""Models that somebody trained, read from a folder and refused in one line when something is wrong."""

from __future__ import annotations

from dataclasses import dataclass
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
from rlhf.models.sources import ModelSource


@dataclass(kw_only=True, slots=True)
class Pretrained(ModelSource):
    """A model that somebody trained: another run's folder, any Hugging Face folder or hub name."""

    path: str = "???"
    """A run's folder (its model/ is taken), a folder with config.json and safetensors, or a hub name."""

    @property
    def name(self) -> str:
        """The path as the user wrote it."""
        return self.path

    @property
    def folder(self) -> str:
        """The folder with ``config.json``, or the hub name.

        Raises:
            FileNotFoundError: there is a folder of that name, or of its parent's, but no model in it.
        """
        path = Path(self.path)
        for folder in (path, path / "model"):
            if (folder / "config.json").is_file():
                return str(folder)
        if path.exists():
            raise FileNotFoundError(
                f"{self.path} holds no model: it has neither config.json nor model/config.json"
            )
        hub_name = len(path.parts) <= 2 and not self.path.startswith(("/", ".", "~"))
        if not hub_name or (len(path.parts) == 2 and path.parent.exists()):
            raise FileNotFoundError(f"{self.path} does not exist: no such run or model folder")
        return self.path

    def config(self) -> Any:
        """The model's configuration with every dropout rate 0.

        Raises:
            FileNotFoundError: nothing is found under the path.
        """
        folder = self.folder
        try:
            with quiet():
                config = AutoConfig.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise FileNotFoundError(f"{self.path} holds no readable model: {_first_line(error)}") from None
        zero_dropout_config(config)
        return config

    def causal_lm(
        self, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, generator: torch.Generator
    ) -> Any:
        """The folder's causal language model.

        Raises:
            FileNotFoundError: nothing is found under the path.
            ValueError: it is no causal language model, its weights are incomplete, do not fit or are not
                finite, or its own tokenizer numbers the tokens otherwise.
        """
        config = self.config()
        for architecture in config.architectures or ():
            if architecture.endswith("ForSequenceClassification"):
                raise ValueError(f"{self.path} is no language model: its architecture is {architecture}")
        model = self._load(AutoModelForCausalLM, config, dtype)
        self._expect_same_tokens(tokenizer)
        return model

    def classifier(self, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> Any:
        """The folder's reward model, its trained head included.

        Raises:
            FileNotFoundError: nothing is found under the path.
            ValueError: it is no reward model, or as for :meth:`causal_lm`.
        """
        config = self.config()
        architecture = (config.architectures or ["unknown"])[0]
        if not architecture.endswith("ForSequenceClassification"):
            raise ValueError(
                f"{self.path} is no reward model: its architecture is {architecture}, "
                "needed is a …ForSequenceClassification with one label"
            )
        if config.num_labels != 1:
            raise ValueError(
                f"{self.path} is no reward model: it has {config.num_labels} labels, needed is 1"
            )
        model = self._load(AutoModelForSequenceClassification, config, dtype)
        self._expect_same_tokens(tokenizer)
        return model

    def _load(self, auto: Any, config: Any, dtype: torch.dtype) -> Any:
        try:
            with (
                quiet(),
                torch.random.fork_rng(devices=[]),
            ):  # missing weights are drawn before we can refuse
                model, info = auto.from_pretrained(
                    self.folder,
                    config=config,
                    dtype=dtype,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # reported below, in one line
                )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{self.path} cannot be loaded: {_first_line(error)}") from None
        self._expect_complete(info)
        for name, weight in model.named_parameters():
            if not torch.isfinite(weight).all():
                raise ValueError(f"{self.path}: weight {name} holds NaN or infinite numbers")
        return model

    def _expect_complete(self, info: dict[str, Any]) -> None:
        missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
        mismatched = sorted(info["mismatched_keys"])
        if "score.weight" in missing:
            raise ValueError(f"{self.path} is no reward model: its weights lack the head, score.weight")
        if missing:
            raise ValueError(f"{self.path}: {len(missing)} weights are missing, the first is {missing[0]}")
        if mismatched:
            name, found, needed = mismatched[0]
            raise ValueError(f"{self.path}: weight {name} has shape {tuple(found)}, expected {tuple(needed)}")
        if unexpected:
            raise ValueError(
                f"{self.path}: {len(unexpected)} weights are not the model's, the first is {unexpected[0]}"
            )

    def _expect_same_tokens(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """The folder's own tokenizer must number its tokens as the given one does; hub names are trusted."""
        if not (Path(self.folder) / "tokenizer_config.json").is_file():
            return
        with quiet():
            own = AutoTokenizer.from_pretrained(self.folder).get_vocab()
        given = tokenizer.get_vocab()
        different = sum(given.get(token) != number for token, number in own.items())
        if different:
            raise ValueError(
                f"the tokenizer does not fit {self.path}: {different} of the {len(own)} tokens "
                "of the tokenizer saved there have another number or none"
            )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
