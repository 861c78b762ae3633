"""Every command trains adapters, and reads what another one left of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

SMALL = ("engine=plain", "micro_batch_size=8", "cadence.checkpoint_every=1", "batch_size=6")


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def parts(folder: Path) -> set[str]:
    return {part for part in ("adapter", "model") if (folder / part).is_dir()}


def test_stages_build_on_each_others_adapters(rlhf: Any, workspace: Any, tmp_path: Path) -> None:
    """SFT, reward model, DPO, distillation and PPO; nothing but adapters is kept of the first two."""
    runs = tmp_path / "runs"

    def done(name: str, *arguments: str) -> None:
        outcome = rlhf(name, *arguments)
        assert outcome.status == 0, outcome.err

    lora = ("lora=adapter", "lora.rank=2", "optimizer.lr=0.01")
    alone = (*SMALL, *lora, "lora.merge=false")
    base, prompts = f"model.path={workspace.sft}", f"prompts.path={workspace.prompts}"
    texts = f"data.path={workspace.demonstrations}"
    done("sft", "name=sft", "model=pretrained", base, texts, "kl_coef=0.5", *alone)
    done("reward", "name=rm", base, f"data.path={workspace.pairs}", *alone)
    assert parts(runs / "sft") == parts(runs / "rm") == {"adapter"}
    assert metrics(runs / "sft")[0]["actor/kl_reference_per_token"] == 0.0

    done("preference", "name=dpo", "model.path=runs/sft", f"data.path={workspace.pairs}", *SMALL, *lora)
    few = ("rollout.prompts=6", "rollout.sampling.max_new_tokens=4")
    teacher = ("student.path=runs/sft", "teacher.path=runs/dpo", prompts, "rounds=1", *few)
    done("distill", "name=student", *teacher, *SMALL, *lora)
    policy = ("actor.model.path=runs/sft", "reward.path=runs/rm", prompts, *few, "rollouts=2")
    both = ("actor/lora=adapter", "critic/lora=adapter", "actor.optimizer.lr=0.01")
    done("rl", "name=ppo", *policy, *both, *SMALL[:3])
    for name in ("dpo", "student", "ppo"):
        assert parts(runs / name) == {"adapter", "model"}
    first, second = metrics(runs / "ppo")
    assert first["actor/kl_reference"] == first["actor/kl_reference_exact"] == 0.0
    assert second["actor/kl_reference_exact"] > 0.0

    done("generate", "name=said", "model.path=runs/sft", prompts, "decoding.max_new_tokens=4")
    pairs = ("data.response_field=chosen", f"data.path={workspace.pairs}")
    done("score", "name=scored", "reward=model", "reward.path=runs/rm", *pairs)
    (runs / "ppo" / "model").rename(runs / "merged")
    done("evaluate", "name=same", "reference.path=runs/merged", "+policies={adapters: runs/ppo}", prompts,
         "reward.path=runs/rm", "sampling.max_new_tokens=4")  # fmt: skip
    report = json.loads((runs / "same" / "report.json").read_text())
    assert "adapters" in json.dumps(report)


def test_merged_weights_are_the_base_with_the_adapters_added(
    rlhf: Any, workspace: Any, tmp_path: Path
) -> None:
    from peft import AutoPeftModelForCausalLM

    data = (f"model.path={workspace.sft}", f"data.path={workspace.demonstrations}")
    settings = ("model=pretrained", "lora=adapter", "optimizer.lr=0.01")
    outcome = rlhf("sft", "name=sft", *data, *settings, *SMALL)
    assert outcome.status == 0, outcome.err
    tokens = torch.arange(3, 12)[None]
    folder = tmp_path / "runs" / "sft"
    merged = AutoModelForCausalLM.from_pretrained(folder / "model")(tokens).logits
    adapted = AutoPeftModelForCausalLM.from_pretrained(folder / "adapter")(tokens).logits
    base = AutoModelForCausalLM.from_pretrained(workspace.sft / "model")(tokens).logits
    torch.testing.assert_close(merged, adapted, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(merged, base, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=tiny_llama"], "lora needs a model that somebody trained, got TinyLlama with random weights"),
        (["lora.rank=0"], "LoRA.rank must be at least 1, got 0"),
        (["lora.target_modules=[query]"], "LlamaModel has no linear layer query, it has down_proj, "),
    ],
)
def test_misuse_ends_in_one_line(rlhf: Any, workspace: Any, arguments: list[str], message: str) -> None:
    data = f"data.path={workspace.demonstrations}"
    model = arguments if arguments[0].startswith("model=") else [
        "model=pretrained", f"model.path={workspace.sft}", *arguments
    ]  # fmt: skip
    outcome = rlhf("sft", "name=new", data, "lora=adapter", *model, *SMALL)
    assert outcome.status == 1
    last = outcome.err.splitlines()[-1]  # after what is said of the data
    assert last.startswith("rlhf sft: ")
    assert message in last
    assert "Traceback" not in outcome.err
