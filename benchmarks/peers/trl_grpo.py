"""TRL's GRPO trainer with its default generation, timed step by step."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.clock import step_clock

SAMPLES, STEPS = 4, 4


def make() -> Callable[[dict[str, Any]], dict[str, torch.Tensor]]:
    """A function of model folder, file of prompts and tokens of a response at most."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    def run(given: dict[str, Any]) -> dict[str, torch.Tensor]:
        lines = Path(given["prompts"]).read_text(encoding="utf-8").splitlines()
        rows, clock = [json.loads(line) for line in lines], step_clock()
        size = len(rows) // STEPS * SAMPLES
        with tempfile.TemporaryDirectory() as folder:
            trainer = GRPOTrainer(
                model=AutoModelForCausalLM.from_pretrained(given["model"]),
                processing_class=AutoTokenizer.from_pretrained(given["model"]),
                reward_funcs=_distinct,
                train_dataset=Dataset.from_list(rows),
                callbacks=[clock],
                args=GRPOConfig(
                    output_dir=folder,
                    per_device_train_batch_size=size,
                    gradient_accumulation_steps=1,
                    num_generations=SAMPLES,
                    max_completion_length=given["new"],
                    temperature=1.0,
                    beta=0.001,
                    learning_rate=1e-6,
                    max_steps=STEPS,
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
        length = float(trainer.state.log_history[0]["completions/max_length"])
        return {"length": torch.tensor([length]), "seconds": torch.tensor(clock.seconds[1:]).median()}

    return run


def _distinct(completions: list[str], **_: Any) -> list[float]:
    return [float(len(set(text.split()))) for text in completions]
