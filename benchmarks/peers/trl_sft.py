"""TRL's supervised trainer on given rows, timed step by step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.peers.clock import step_clock

STEPS = 3
"""Optimiser steps of a run; the first is not counted."""


def make(*, padding_free: bool) -> Callable[[dict[str, Any]], dict[str, torch.Tensor]]:
    """A function of model folder, rows and rows of a micro-batch."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    def run(given: dict[str, Any]) -> dict[str, torch.Tensor]:
        clock, rows = step_clock(), [row.tolist() for row in given["tokens"].split(given["lengths"].tolist())]
        with tempfile.TemporaryDirectory() as folder:
            trainer = SFTTrainer(
                model=AutoModelForCausalLM.from_pretrained(given["model"]),
                processing_class=AutoTokenizer.from_pretrained(given["model"]),
                train_dataset=_dataset(rows),
                callbacks=[clock],
                args=SFTConfig(
                    output_dir=folder,
                    per_device_train_batch_size=given["micro"],
                    gradient_accumulation_steps=len(rows) // given["micro"],
                    max_steps=STEPS,
                    learning_rate=1e-6,
                    lr_scheduler_type="constant",
                    max_length=None,
                    padding_free=padding_free,
                    gradient_checkpointing=False,
                    bf16=False,
                    logging_steps=1,
                    save_strategy="no",
                    report_to=[],
                    disable_tqdm=True,
                    use_cpu=not torch.cuda.is_available(),
                    dataloader_pin_memory=False,
                ),
            )
            trainer.train()
        counted = clock.seconds[1:]
        return {
            "loss": torch.tensor([trainer.state.log_history[0]["loss"]]),
            "seconds": torch.tensor(counted).mean().reshape(1),
        }

    return run


def _dataset(rows: list[list[int]]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"input_ids": rows})
