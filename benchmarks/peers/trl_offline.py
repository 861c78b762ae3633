"""TRL's trainers on given rows, timed step by step: supervised, reward model, DPO."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.peers.clock import step_clock

STEPS = 3
"""Optimiser steps of a run; the first is not counted."""

Tensors = dict[str, Any]


def arguments(folder: str, given: Tensors, rows: int) -> dict[str, Any]:
    """What all three trainers are told: float32, the product's rate, everything in one optimiser step."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": given["micro"],
        "gradient_accumulation_steps": rows // given["micro"],
        "max_steps": STEPS,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "max_length": None,
        "gradient_checkpointing": False,
        "bf16": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": False,
    }


def finished(trainer: Any, clock: Any) -> Tensors:
    """Trains; loss and tokens of the first step, seconds of the later ones."""
    trainer.train()
    first = trainer.state.log_history[0]
    found = {
        "loss": torch.tensor([first["loss"]]),
        "tokens": torch.tensor([float(first["num_tokens"])]),
        "seconds": torch.tensor(clock.seconds[1:]).mean().reshape(1),
    }
    return found if clock.peak is None else found | {"peak": torch.tensor([clock.peak])}


def sft(*, padding_free: bool) -> Callable[[Tensors], Tensors]:
    """A function of model folder, rows and rows of a forward pass."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    def run(given: Tensors) -> Tensors:
        clock = step_clock()
        with tempfile.TemporaryDirectory() as folder:
            common = arguments(folder, given, len(given["rows"]))
            trainer = SFTTrainer(
                model=AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32),
                processing_class=AutoTokenizer.from_pretrained(given["model"]),
                train_dataset=Dataset.from_dict({"input_ids": given["rows"]}),
                callbacks=[clock],
                args=SFTConfig(**common, padding_free=padding_free),
            )
            return finished(trainer, clock)

    return run


def reward() -> Callable[[Tensors], Tensors]:
    """A function of model folder, both sides and pairs of a forward pass."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    def run(given: Tensors) -> Tensors:
        clock = step_clock()
        sides = {"chosen_ids": given["chosen"], "rejected_ids": given["rejected"]}
        with tempfile.TemporaryDirectory() as folder:
            trainer = RewardTrainer(
                model=AutoModelForSequenceClassification.from_pretrained(
                    given["model"], num_labels=1, dtype=torch.float32
                ),
                processing_class=AutoTokenizer.from_pretrained(given["model"]),
                train_dataset=Dataset.from_dict(sides),
                callbacks=[clock],
                args=RewardConfig(**arguments(folder, given, len(given["chosen"]))),
            )
            return finished(trainer, clock)

    return run


def dpo() -> Callable[[Tensors], Tensors]:
    """A function of the folders of model and reference, prompts, both responses, β, pairs of a pass.

    The reference's log-probs are computed before the first step, which the clock does not see.
    """
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    def run(given: Tensors) -> Tensors:
        clock = step_clock()
        tokenizer = AutoTokenizer.from_pretrained(given["model"])
        columns = {name: _texts(tokenizer, given[name]) for name in ("prompt", "chosen", "rejected")}
        with tempfile.TemporaryDirectory() as folder:
            common = arguments(folder, given, len(given["chosen"]))
            dtype = torch.bfloat16 if given["bf16"] else torch.float32
            trainer = DPOTrainer(
                model=AutoModelForCausalLM.from_pretrained(given["model"], dtype=dtype),
                ref_model=AutoModelForCausalLM.from_pretrained(given["reference"], dtype=dtype),
                processing_class=tokenizer,
                train_dataset=Dataset.from_dict(columns),
                callbacks=[clock],
                args=DPOConfig(**common, beta=given["beta"], precompute_ref_log_probs=True),
            )
            return finished(trainer, clock)

    return run


def _texts(tokenizer: Any, rows: list[list[int]]) -> list[str]:
    """Words that the tokenizer reads as these tokens; this trainer takes no tokens."""
    return [" " + " ".join(tokenizer.convert_ids_to_tokens(row)) for row in rows]
