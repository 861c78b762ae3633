"""TRL's PPO trainer. Release 1.13 dropped it; 1.12 lies in a folder of its own, for a process of its own.

python -m benchmarks.peers.trl_ppo ARGUMENTS RESULTS
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PATIENCE = 800.0
"""Seconds after which a run is ended."""
FOLDER = Path(sys.prefix).with_name("peers_ppo")
"""Made by benchmarks/peers.sh beside the peers' environment."""


def make() -> Callable[[dict[str, Any]], dict[str, torch.Tensor]]:
    """A function of the folders of policy and reward model, file of prompts, rows, and tokens of a response.

    Raises:
        ModuleNotFoundError: there is no such folder.
    """
    if not FOLDER.is_dir():
        raise ModuleNotFoundError(f"no {FOLDER}; bash benchmarks/peers.sh makes it")

    def run(given: dict[str, Any]) -> dict[str, torch.Tensor]:
        with tempfile.TemporaryDirectory() as place:
            arguments, results = Path(place) / "in.pt", Path(place) / "out.pt"
            torch.save(given, arguments)
            done = subprocess.run(
                [sys.executable, "-m", __name__, str(arguments), str(results)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(FOLDER), os.environ["PYTHONPATH"]])},
                capture_output=True,
                text=True,
                check=False,
                timeout=PATIENCE,
            )
            if done.returncode != 0:
                raise RuntimeError((done.stderr.strip().splitlines() or ["TRL's PPO ended"])[-1])
            found: dict[str, torch.Tensor] = torch.load(results, weights_only=True)
            return found

    return run


def train(given: dict[str, Any], folder: str) -> dict[str, torch.Tensor]:
    """One optimiser step an iteration; its logs give the tokens, a clock around them the seconds."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    from benchmarks.peers.clock import end_clock

    tokenizer = AutoTokenizer.from_pretrained(given["model"], padding_side="left")
    lines = Path(given["prompts"]).read_text(encoding="utf-8").splitlines()
    prompts = [tokenizer(json.loads(line)["prompt"])["input_ids"] for line in lines]
    rows = [{"input_ids": prompt} for prompt in prompts for _ in range(given["samples"])]
    dtype = torch.bfloat16 if given["bf16"] else torch.float32
    policy, reference = (AutoModelForCausalLM.from_pretrained(given["model"], dtype=dtype) for _ in range(2))
    critic, reward = (
        AutoModelForSequenceClassification.from_pretrained(given["reward"], num_labels=1, dtype=dtype)
        for _ in range(2)
    )
    clock = end_clock()
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=folder,
            per_device_train_batch_size=given["micro"],
            gradient_accumulation_steps=given["rows"] // given["micro"],
            local_rollout_forward_batch_size=given["rows"],
            num_ppo_epochs=1,
            num_mini_batches=1,
            total_episodes=given["rows"] * given["steps"],
            response_length=given["new"],
            stop_token="eos",
            temperature=1.0,
            num_sample_generations=0,
            learning_rate=1e-6,
            gradient_checkpointing=False,
            bf16=given["bf16"],
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=False,
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=critic,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
        callbacks=[clock],
    )
    trainer.train()
    return {
        "length": torch.tensor([given["length"]]),
        "seconds": torch.tensor(clock.seconds).median(),
    }


def main(arguments: str, results: str) -> None:
    """Read, train, write."""
    given = torch.load(arguments, weights_only=True)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(train(given, folder), results)


if __name__ == "__main__":
    main(*sys.argv[1:])
