"""Compiled layers train like the others, with one graph for every number of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlhf.distributed import runtime
from rlhf.distributed.compilation import layers
from rlhf.distributed.engine import TorchEngine
from rlhf.distributed.engine_config import EngineConfig, Plain, ZeRO
from tests.trainers import toy

STEPS, LR = 5, 1e-3
ENGINES: dict[str, EngineConfig] = {"plain": Plain(clip=0.5), "zero2": ZeRO(stage=2, clip=0.5)}
MODELS = {"llama": replace(toy.LLAMA, layers=2), "gpt2": replace(toy.GPT2, layers=2)}


class Stack(nn.Module):
    """Two layers in a list, one with a list of its own, and a head outside."""

    def __init__(self) -> None:
        super().__init__()
        first, second = (
            nn.Sequential(nn.Linear(4, 4), nn.GELU()),
            nn.Sequential(nn.ModuleList([nn.Linear(4, 4)])),
        )
        self.h = nn.ModuleList([first, second])
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.h[0](x))


def engine_of(module: nn.Module) -> TorchEngine:
    return TorchEngine(module, torch.optim.AdamW(module.parameters()), name="actor", clip=None, compiled=True)


def test_layers_are_the_members_of_the_outermost_lists() -> None:
    module = Stack()
    assert layers(nn.Sequential(module, nn.Linear(1, 1))) == list(module.h)


def test_a_module_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="actor: compile must be false, got true: Linear has no layers with"):
        engine_of(nn.Linear(2, 1))


def test_stage_3_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ZeRO\.compile must be false at stage 3, got true: parameters are"):
        ZeRO(stage=3, compile=True)


def test_a_compiler_that_fails_is_one_line_and_the_layers_are_as_before() -> None:
    module = Stack()
    with (
        torch._inductor.config.patch({"cpp.cxx": ("/nowhere/g++",), "force_disable_caches": True}),
        pytest.raises(ValueError, match=r"^actor: torch\.compile failed, set compile=false: [^\n]*$"),
    ):
        engine_of(module)(torch.ones(3, 4))
    assert "forward" not in vars(module.h[0][0])


@pytest.fixture
def alone() -> Iterator[None]:
    torch.compiler.reset()
    runtime.start()
    yield
    runtime.stop()
    torch.compiler.reset()


def trained(stage: str, engine: EngineConfig, **options: Any) -> dict[str, Any]:
    """Losses of five steps, and the parameters after them; the last steps may make no new graph."""
    options |= {"engine": engine, "packed": True, "gradient_checkpointing": True, "lr": LR}
    if stage == "sft":
        trainer: Any = toy.supervised(**options, batch_size=10, micro_batch_tokens=40, total=STEPS)
        engines = [trainer.engine]
    else:
        trainer = toy.policy_gradient(toy.ppo(), **options, critic_lr=LR, total=STEPS)
        engines = [trainer.models.actor, trainer.models.critic]
    losses: list[float] = []
    for step in range(STEPS):
        with torch.compiler.set_stance("default" if step < 2 else "fail_on_recompile"):
            metrics = trainer.step()
        losses += [total / count for name, (total, count) in metrics.pairs.items() if name.endswith("loss")]
    weights = {f"{one.name}.{name}": value for one in engines for name, value in one.state().items()}
    return {"losses": losses, "weights": weights}


@pytest.mark.slow  # each compiles for a quarter of a minute
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_five_steps_are_those_of_layers_that_are_not_compiled(
    alone: None, stage: str, name: str, model: str
) -> None:
    """Packed passes of changing lengths, with gradient checkpointing."""
    wanted = trained(stage, ENGINES[name], source=MODELS[model])
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    found = trained(stage, replace(ENGINES[name], compile=True), source=MODELS[model])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs
    assert found["losses"] == pytest.approx(wanted["losses"], abs=1e-5)
    assert len(wanted["losses"]) == (STEPS if stage == "sft" else 2 * STEPS)
    for key, weight in wanted["weights"].items():
        torch.testing.assert_close(found["weights"][key], weight, rtol=0, atol=1e-5)  # a hundredth of a step
