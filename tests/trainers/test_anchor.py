"""The KL term of supervised fine-tuning, against texts that are scored one by one."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.distributed import collectives
from rlhf.distributed.engine_config import EngineConfig, Plain, ZeRO


def mean(metrics: Any, name: str) -> float:
    total, count = metrics.pairs[name]
    return total / count


def own(actor: Any, text: Any) -> Tensor:
    """(t, V) log-probs before each target of one text, alone and unpadded."""
    tokens = torch.tensor([text.tokens])
    found = actor.model(input_ids=tokens).logits[0, :-1].double().log_softmax(-1)
    return found[torch.tensor(text.targets[1:])]


def expected(policy: Any, reference: Any, rows: Any) -> tuple[Tensor, Tensor]:
    """−log π and KL(π‖π_ref) of every target of every row."""
    nll, kl = [], []
    for text in rows.encoded:
        log_p, log_q = own(policy, text), own(reference, text).detach()
        targets = torch.tensor(text.tokens)[torch.tensor(text.targets)]
        nll.append(-log_p.gather(1, targets[:, None])[:, 0])
        kl.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return torch.cat(nll), torch.cat(kl)


def gradient_norm(loss: Tensor, module: Any) -> float:
    module.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]).norm()
    module.zero_grad(set_to_none=True)
    return float(norm)


@pytest.mark.parametrize("packed", [False, True])
def test_a_step_descends_the_log_loss_and_the_kl_of_each_target(toy: ModuleType, packed: bool) -> None:
    rows = toy.supervised_set()
    trainer = toy.supervised(
        engine=Plain(clip=None), batch_size=12, micro_batch_size=5, kl_coef=0.7, packed=packed
    )
    nll, kl = expected(trainer.engine.module, trainer.anchor.reference.module, rows)
    norm = gradient_norm((nll + 0.7 * kl).mean(), trainer.engine.module)
    metrics = trainer.step()
    assert mean(metrics, "loss") == pytest.approx(nll.mean().item(), rel=1e-5)
    assert mean(metrics, "actor/kl_reference_per_token") == pytest.approx(kl.mean().item(), rel=1e-5)
    assert metrics.pairs["loss"][1] == metrics.pairs["actor/kl_reference_per_token"][1] == len(nll)
    assert mean(metrics, "actor/grad_norm") == pytest.approx(norm, rel=1e-4)


def test_at_the_reference_the_term_pulls_nowhere(toy: ModuleType) -> None:
    near = toy.supervised(kl_coef=5.0, reference=toy.actor("sft"))
    plain = toy.supervised()
    metrics = near.step()
    assert mean(metrics, "actor/kl_reference_per_token") == 0
    assert mean(metrics, "loss") == pytest.approx(mean(plain.step(), "loss"), rel=1e-6)
    for name, tensor in toy.parameters(plain.engine).items():
        torch.testing.assert_close(toy.parameters(near.engine)[name], tensor, rtol=1e-5, atol=1e-4)


def test_a_large_coefficient_keeps_the_policy_near(toy: ModuleType) -> None:
    kls = []
    for coef in (0.01, 10.0):
        trainer = toy.supervised(kl_coef=coef, reference=toy.actor("sft"), total=20)
        kls.append([mean(trainer.step(), "actor/kl_reference_per_token") for _ in range(20)][-1])
    assert kls[1] < 0.1 * kls[0]


LR = 1e-3
ENGINES: dict[str, EngineConfig] = {
    "plain": Plain(),
    "zero2": ZeRO(stage=2),
    "zero3": ZeRO(stage=3, persistence_threshold=0),
}


def first_step(toy: ModuleType, engine: EngineConfig) -> dict[str, Any]:
    trainer = toy.supervised(engine=engine, batch_size=12, micro_batch_size=4, kl_coef=0.7, lr=LR)
    metrics = trainer.step().reduce(collectives.all_sum, collectives.all_max)
    return {"metrics": metrics, "state": trainer.engine.state()}


def work(folder: Path) -> dict[str, Any]:
    """What each of two ranks finds."""
    from tests.trainers import toy

    return {name: first_step(toy, engine) for name, engine in ENGINES.items()}


@pytest.fixture(scope="module")
def found(two_ranks: Callable[[str, str], list[Any]]) -> list[Any]:
    return two_ranks(__file__, "work")


@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_make_the_step_of_one(found: list[Any], toy: ModuleType, engine: str) -> None:
    """ZeRO-3 gathers the head of the reference for as long as the policy runs."""
    both, alone = found[0][engine], first_step(toy, Plain())
    for name in ("loss", "actor/kl_reference_per_token", "actor/grad_norm"):
        assert both["metrics"][name] == pytest.approx(alone["metrics"][name], rel=1e-4), name
    for name, tensor in alone["state"].items():
        # Adam turns the rounding of a gradient near 0 into some thousandths of the learning rate.
        torch.testing.assert_close(both["state"][name], tensor, rtol=1e-5, atol=1e-2 * LR, msg=name)


def test_evaluation_is_of_the_log_loss_alone(toy: ModuleType) -> None:
    held_out = toy.supervised_set(5, "held out")
    found = [toy.supervised(test=held_out, kl_coef=coef).evaluate() for coef in (0.0, 0.7)]
    assert mean(found[0], "eval/loss") == mean(found[1], "eval/loss")
