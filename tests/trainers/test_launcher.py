"""Two processes of the deepspeed launcher against one of plain torch, from the command line to the model."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from rlhf.models.saving import save_model

PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
LR = 1e-3
SFT = [
    "sft",
    "model=tiny_llama",
    *("model.layers=1", "model.hidden=16", "model.heads=2", "model.intermediate=24", "model.context=40"),
    "tokenizer.path=sft",
    "data.path=demonstrations.jsonl",
    f"optimizer.lr={LR}",
    "batch_size=12",
    "micro_batch_size=4",
]
RL = [
    "rl",
    "actor.model.path=sft",
    "critic.path=reward",
    "reward=function",
    "reward.function=toy_reward:score",
    "prompts.path=prompts.jsonl",
    f"actor.optimizer.lr={LR}",
    "algorithm.epochs=1",
    "rollout.prompts=8",
    "rollout.sampling.max_new_tokens=6",
    "micro_batch_size=4",
    "rollouts=1",
]


@pytest.fixture(scope="module")
def folder(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, a critic, data and a reward function."""
    place = tmp_path_factory.mktemp("launched")
    actor, critic, tokenizer = toy.actor(), toy.scalar(), toy.tokenizer()
    save_model(actor, actor.state_dict(), tokenizer, place / "sft")
    save_model(critic, critic.state_dict(), tokenizer, place / "reward")
    texts = [
        tokenizer.decode(row.tokens[1:-1]).rsplit(" ", 1) for row in toy.supervised_set().encoded
    ]  # 12 rows of unequal lengths
    rows = [{"prompt": prompt + " ", "response": response} for prompt, response in texts]
    prompts = [{"prompt": text} for text in toy.prompt_set().strings]
    for name, lines in (("demonstrations", rows), ("prompts", prompts)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (place / "toy_reward.py").write_text(
        "def score(prompts, responses, columns):\n"
        "    return [float(response.split().count('a')) for response in responses]\n"
    )
    return place


@pytest.fixture(scope="module")
def trained(folder: Path) -> Callable[[list[str], str], dict[str, torch.Tensor]]:
    """The weights that a command exports, started alone or by the deepspeed launcher; each runs once."""
    done: dict[str, dict[str, torch.Tensor]] = {}

    def train(command: list[str], engine: str) -> dict[str, torch.Tensor]:
        name = f"{command[0]}-{engine}"
        if name not in done:
            run(folder, engine, [*command, f"engine={engine}", f"name={name}"])
            done[name] = load_file(folder / "runs" / name / "model" / "model.safetensors")
        return done[name]

    return train


def run(folder: Path, engine: str, command: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in PLACE}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    start = [sys.executable, "-m", "rlhf"]
    if engine != "plain":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        launcher = str(Path(sys.executable).with_name("deepspeed"))
        start = [
            launcher,
            "--no_local_rank",
            "--num_gpus",
            "2",
            "--master_port",
            str(port),
            "--module",
            "rlhf",
        ]
    finished = subprocess.run(
        [*start, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
@pytest.mark.parametrize("command", [SFT, RL], ids=["sft", "rl"])
def test_two_launched_ranks_take_the_step_of_one_process(
    trained: Callable[[list[str], str], dict[str, torch.Tensor]], command: list[str], engine: str
) -> None:
    both, alone = trained(command, engine), trained(command, "plain")
    assert both.keys() == alone.keys()
    for name, weight in alone.items():
        # The responses are the same, for their noise is keyed by row. Gradients differ by their rounding,
        # which Adam's first step lr·g / (|g| + 1e-5) turns into at most some 1e-3 of the learning rate.
        torch.testing.assert_close(both[name], weight, rtol=1e-5, atol=1e-3 * LR, msg=name)
