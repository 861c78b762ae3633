"""TRL's GRPO and RLOO trainers with their default generation, timed step by step."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.clock import step_clock


def make(algorithm: str) -> Callable[[dict[str, Any]], dict[str, torch.Tensor]]:
    """A function of model folder, file of prompts, rows of an iteration, and tokens of a response."""
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trainer_class = getattr(trl, f"{algorithm.upper()}Trainer")
    config_class = getattr(trl, f"{algorithm.upper()}Config")

    def run(given: dict[str, Any]) -> dict[str, torch.Tensor]:
        lines = Path(given["prompts"]).read_text(encoding="utf-8").splitlines()
        clock = step_clock()
        dtype = torch.bfloat16 if given["bf16"] else torch.float32
        with tempfile.TemporaryDirectory() as folder:
            trainer = trainer_class(
                model=AutoModelForCausalLM.from_pretrained(given["model"], dtype=dtype),
                processing_class=AutoTokenizer.from_pretrained(given["model"]),
                reward_funcs=_distinct,
                train_dataset=Dataset.from_list([json.loads(line) for line in lines]),
                callbacks=[clock],
                args=config_class(
                    output_dir=folder,
                    per_device_train_batch_size=given["micro"],
                    gradient_accumulation_steps=given["rows"] // given["micro"],
                    num_generations=given["samples"],
                    max_completion_length=given["new"],
                    temperature=1.0,
                    beta=0.001,
                    learning_rate=1e-6,
                    max_steps=given["steps"],
                    gradient_checkpointing=False,
                    bf16=given["bf16"],
                    logging_steps=1,
                    save_strategy="no",
                    report_to=[],
                    disable_tqdm=True,
                    use_cpu=not torch.cuda.is_available(),
                    dataloader_pin_memory=False,
                ),
            )
            trainer.train()
        length = float(trainer.state.log_history[0]["completions/mean_length"])
        seconds = torch.tensor(clock.seconds[1:]).median()
        return {"length": torch.tensor([length]), "seconds": seconds}

    return run


def _distinct(completions: list[str], **_: Any) -> list[float]:
    return [float(len(set(text.split()))) for text in completions]
