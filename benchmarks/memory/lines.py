"""The command lines that are measured, and the random models that they train."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig
from transformers import AutoModelForSequenceClassification as Classifier

QUICKSTART = Path("runs/quickstart")


@dataclass(kw_only=True, slots=True)
class CommandLine:
    """One of ``rlhf``, large enough for its tensors to count, and the same in small to load the libraries."""

    name: str
    command: str
    overrides: list[str]
    small: list[str] = field(default_factory=list)
    """Overrides that make it small."""
    ranks: int = 1


def make_models(folder: Path) -> dict[str, str]:
    """Random models with the quick start's tokenizer; paths by name. They are made once."""
    sizes = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1536}
    made = {
        "llama": LlamaConfig(**sizes, vocab_size=4096, max_position_embeddings=256, tie_word_embeddings=True),
        "grouped": LlamaConfig(
            **sizes | {"num_key_value_heads": 2, "num_hidden_layers": 6},
            vocab_size=32_768,
            max_position_embeddings=256,
            tie_word_embeddings=False,
        ),
        "gpt2": GPT2Config(n_embd=640, n_layer=8, n_head=10, n_positions=256, vocab_size=4096),
        "tiny": LlamaConfig(
            hidden_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            vocab_size=4096,
            max_position_embeddings=256,
        ),
    }
    paths = {name: _written(folder / name, config, AutoModelForCausalLM) for name, config in made.items()}
    for name in ("llama", "tiny"):
        config = made[name]
        config.num_labels = 1
        paths[f"{name}_reward"] = _written(folder / f"{name}_reward", config, Classifier)
    return paths


def _written(folder: Path, config: LlamaConfig | GPT2Config, kind: type) -> str:
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(QUICKSTART / "sft" / "model")
        for end in ("bos", "eos", "pad"):
            setattr(config, f"{end}_token_id", getattr(tokenizer, f"{end}_token_id"))
        tokenizer.save_pretrained(folder)
        kind.from_config(config).save_pretrained(folder)
    return str(folder)


def command_lines(models: dict[str, str]) -> list[CommandLine]:
    """Twelve, of five commands."""
    return [
        *_offline(models),
        *_online(models),
    ]


def _offline(models: dict[str, str]) -> list[CommandLine]:
    sft = ["model=pretrained", "batch_size=32", "micro_batch_size=16", *_rows("supervised", 64)]
    pairs = [*_rows("preferences", 32), "batch_size=16", "micro_batch_size=16"]
    tiny = [f"model.path={models['tiny']}"]
    return [
        CommandLine(
            name="sft",
            command="sft",
            overrides=[*sft, f"model.path={models['llama']}", "engine=plain"],
            small=tiny,
        ),
        CommandLine(
            name="sft, checkpointed activations, GPT-2",
            command="sft",
            overrides=[
                *sft,
                f"model.path={models['gpt2']}",
                "engine=plain",
                "gradient_checkpointing=true",
                "micro_batch_size=32",
            ],
            small=tiny,
        ),
        CommandLine(
            name="sft, large vocabulary, ZeRO-1",
            command="sft",
            overrides=[*sft, f"model.path={models['grouped']}", "engine=zero1"],
            small=tiny,
        ),
        CommandLine(
            name="sft, ZeRO-2, two ranks",
            command="sft",
            overrides=[*sft, f"model.path={models['llama']}", "engine=zero2"],
            small=tiny,
            ranks=2,
        ),
        CommandLine(
            name="sft, ZeRO-3, two ranks",
            command="sft",
            overrides=[*sft, f"model.path={models['llama']}", "engine=zero3"],
            small=tiny,
            ranks=2,
        ),
        CommandLine(
            name="reward",
            command="reward",
            overrides=[*pairs, f"model.path={models['llama']}", "engine=plain"],
            small=tiny,
        ),
        CommandLine(
            name="preference, DPO",
            command="preference",
            overrides=[*pairs, f"model.path={models['llama']}", "engine=plain", "loss=dpo"],
            small=tiny,
        ),
    ]


def _online(models: dict[str, str]) -> list[CommandLine]:
    rl = [
        f"prompts.path={QUICKSTART}/data/prompts_train.jsonl",
        "rollout.sampling.max_new_tokens=24",
        "rollouts=2",
        f"reward.path={models['llama_reward']}",
    ]
    tiny = [f"actor.model.path={models['tiny']}", f"reward.path={models['tiny_reward']}", "rollouts=1"]
    function = ["reward=function", "reward.function=benchmarks.memory.rewards:length"]
    return [
        CommandLine(
            name="rl, PPO",
            command="rl",
            overrides=[
                *rl,
                f"actor.model.path={models['llama']}",
                "engine=plain",
                "rollout.prompts=16",
                "micro_batch_size=16",
                "algorithm.epochs=2",
            ],
            small=tiny,
        ),
        CommandLine(
            name="rl, PPO, adapters, ZeRO-2",
            command="rl",
            overrides=[
                *rl,
                f"actor.model.path={models['llama']}",
                "engine=zero2",
                "actor/lora=adapter",
                "critic/lora=adapter",
                "rollout.prompts=32",
                "micro_batch_size=32",
                "rollout.exact_kl=false",
            ],
            small=tiny,
        ),
        CommandLine(
            name="rl, GRPO, large vocabulary",
            command="rl",
            overrides=[
                *[word for word in rl if "reward.path" not in word],
                *function,
                "algorithm=grpo",
                f"actor.model.path={models['grouped']}",
                "engine=plain",
                "rollout.prompts=4",
                "rollout.samples=8",
                "micro_batch_size=16",
                "rollout.exact_kl=false",
            ],
            small=[tiny[0], "rollouts=1"],
        ),
        CommandLine(
            name="rl, REINFORCE++, bfloat16, ZeRO-1",
            command="rl",
            overrides=[
                *[word for word in rl if "reward.path" not in word],
                *function,
                "algorithm=reinforce_plus_plus",
                f"actor.model.path={models['llama']}",
                "engine=zero1",
                "engine.precision=bfloat16",
                "rollout.prompts=16",
                "micro_batch_size=16",
                "rollout.exact_kl=false",
            ],
            small=[tiny[0], "rollouts=1"],
        ),
        CommandLine(
            name="generate",
            command="generate",
            overrides=[
                f"model.path={models['llama']}",
                f"prompts.path={QUICKSTART}/data/prompts_test.jsonl",
                "prompts.limit=32",
                "samples=4",
                "micro_batch_size=128",
                "decoding.max_new_tokens=64",
            ],
            small=[f"model.path={models['tiny']}", "decoding.max_new_tokens=4"],
        ),
    ]


def _rows(name: str, limit: int) -> list[str]:
    """Two steps of the quick start's data."""
    return [f"data.path={QUICKSTART}/data/{name}_train.jsonl", f"data.limit={limit}"]
