"""Online and supervised runs with adapters: the same on every engine, and continued bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from rlhf.distributed import collectives
from rlhf.distributed.engine_config import EngineConfig, Plain, Precision, ZeRO
from rlhf.models.lora import LoRA

LORA = LoRA(rank=2, alpha=4.0)
ENGINES: dict[str, EngineConfig] = {
    "plain": Plain(),
    **{f"zero{stage}": ZeRO(stage=stage, persistence_threshold=0) for stage in range(4)},
}
STAGES = ("ppo", "anchored")
SPECIAL = "bfloat16 zero3"


def build(toy: ModuleType, stage: str, engine: EngineConfig, source: Any = None) -> Any:
    common = {"engine": engine, "lora": LORA, "packed": True, "source": source or toy.LLAMA}
    if stage == "ppo":
        return toy.policy_gradient(toy.ppo(), gradient_checkpointing=True, **common)
    return toy.supervised(kl_coef=0.5, **common)


def engines(trainer: Any) -> list[Any]:
    return [trainer.engine] if hasattr(trainer, "engine") else [trainer.models.actor, trainer.models.critic]


def played(toy: ModuleType, stage: str, engine: EngineConfig, folder: Path, source: Any = None) -> Any:
    """Two steps, and a third one twice: by this trainer, and by one that reads its checkpoint."""
    trainer = build(toy, stage, engine, source)
    found: dict[str, Any] = {"before": [one.state() for one in engines(trainer)]}
    steps = [trainer.step().reduce(collectives.all_sum, collectives.all_max) for _ in range(2)]
    found["metrics"] = steps
    collectives.on_main(lambda: folder.mkdir(parents=True))
    trainer.save(folder)
    trainer.step()
    found["after"] = [one.state() for one in engines(trainer)]
    again = build(toy, stage, engine, source)
    again.load(folder)
    again.step()
    found["continued"] = [one.state() for one in engines(again)]
    return found


def work(folder: Path) -> dict[str, Any]:
    from tests.trainers import toy

    found = {
        f"{stage} {name}": played(toy, stage, engine, folder / f"{stage} {name}")
        for name, engine in ENGINES.items()
        for stage in STAGES
    }
    found["gpt2 zero3"] = played(toy, "ppo", ENGINES["zero3"], folder / "gpt2", toy.GPT2)
    narrow = ZeRO(stage=3, precision=Precision.bfloat16, persistence_threshold=0)
    found[SPECIAL] = played(toy, "ppo", narrow, folder / SPECIAL)
    return found


@pytest.fixture(scope="module")
def pair(two_ranks: Callable[[str, str], list[Any]]) -> Any:
    return two_ranks(__file__, "work")[0]


def expect_equal(one: list[dict[str, Any]], other: list[dict[str, Any]], **tolerance: float) -> None:
    for mine, yours in zip(one, other, strict=True):
        assert mine.keys() == yours.keys()
        for name, tensor in mine.items():
            torch.testing.assert_close(tensor, yours[name], **(tolerance or {"rtol": 0.0, "atol": 0.0}))


@pytest.mark.parametrize("stage", STAGES)
def test_the_policy_starts_on_its_reference_and_leaves_it(
    toy: ModuleType, stage: str, tmp_path: Path
) -> None:
    """One process of plain torch; the KL of the first step is 0 to the last bit."""
    found = played(toy, stage, Plain(), tmp_path / "run")
    name = "actor/kl_reference_exact" if stage == "ppo" else "actor/kl_reference_per_token"
    first, second = (step[name] for step in found["metrics"])
    assert first == 0.0
    assert second > 1e-6
    expect_equal(found["continued"], found["after"])


@pytest.mark.slow  # a minute of two ranks
@pytest.mark.parametrize("key", [f"{stage} {name}" for stage in STAGES for name in ENGINES])
def test_every_engine_trains_the_same_adapters_on_two_ranks(
    toy: ModuleType, pair: Any, key: str, tmp_path: Path
) -> None:
    """As one process of plain torch; PPO, whose minibatches depend on the ranks, as plain torch on two."""
    stage = key.partition(" ")[0]
    plain = pair["ppo plain"] if stage == "ppo" else played(toy, stage, Plain(), tmp_path / "alone")
    expect_equal(pair[key]["after"], plain["after"], rtol=1e-4, atol=2e-5)  # a step is 1e-2
    expect_equal(pair[key]["continued"], pair[key]["after"])


@pytest.mark.slow  # a minute of two ranks
@pytest.mark.parametrize("key", [*(f"ppo {name}" for name in ENGINES), "gpt2 zero3", SPECIAL])
def test_adapters_alone_move_on_every_engine(pair: Any, key: str) -> None:
    for before, after in zip(pair[key]["before"], pair[key]["after"], strict=True):
        for name, tensor in before.items():
            trained = ".lora_" in name or name == "model.score.weight"
            assert torch.equal(after[name], tensor) is not trained, name


@pytest.mark.slow  # a minute of two ranks
def test_adapters_train_under_zero3(pair: Any) -> None:
    """In bfloat16 with float32 master weights of the adapters, and a base in the same bfloat16."""
    for states in (pair[SPECIAL]["before"], pair[SPECIAL]["after"]):
        for state in states:
            for name, tensor in state.items():
                own = (".lora_", "model.score.")  # a head's constant is float32 always
                expected = torch.float32 if any(part in name for part in own) else torch.bfloat16
                assert tensor.dtype == expected, name
    expect_equal(pair[SPECIAL]["continued"], pair[SPECIAL]["after"])
    assert pair[SPECIAL]["metrics"][0]["actor/kl_reference_exact"] == 0.0
