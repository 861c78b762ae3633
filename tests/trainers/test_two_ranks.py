"""Two ranks, over several engines, against one process: the layout appears in no loss and no statistic."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.advantages import WhitenedGroupDeviation
from rlhf.algorithms.corrections import Masked
from rlhf.algorithms.kl import AdaptiveKLInReward, ExactKLInLoss
from rlhf.distributed import checkpoints, collectives
from rlhf.distributed.engine_config import EngineConfig, Plain, ZeRO
from rlhf.metrics import Clock

ENGINES: dict[str, EngineConfig] = {
    "plain": Plain(),
    "zero2": ZeRO(stage=2),
    "zero3": ZeRO(stage=3, persistence_threshold=0),
}
STAGES = ("supervised", "reward_model", "preference", "kto", "ppo", "rloo")
CASES = [
    *[(stage, name) for stage in STAGES for name in ENGINES if (stage, name) != ("rloo", "zero2")],
    ("everything", "plain"),
    ("everything", "zero3"),
]
LR = 1e-3


def build(toy: ModuleType, stage: str, engine: EngineConfig) -> Any:
    """A stage whose first step uses every row of its data; seven rows are held out, or eight prompts."""
    if stage == "supervised":
        held_out = toy.supervised_set(7, "held out")
        return toy.supervised(engine=engine, batch_size=12, micro_batch_size=4, test=held_out, lr=LR)
    if stage == "reward_model":
        sets = {"train": toy.ranking_set(12), "test": toy.ranking_set(7, "held out")}
        return toy.reward_model(engine=engine, batch_size=12, micro_batch_size=4, **sets, lr=LR)
    if stage in ("preference", "kto"):
        held_out = (toy.preference_set if stage == "preference" else toy.labelled_set)(7, "held out")
        trainer = getattr(toy, stage)(
            engine=engine, batch_size=12, micro_batch_size=4, test=held_out, lr=LR, sft_coef=0.1
        )
        for feedback in (trainer.train, trainer.test):
            feedback.reference[:, 1] -= torch.arange(len(feedback))  # for a baseline of KTO that is not 0
        return trainer
    once = {"epochs": 1, "minibatches": 1}
    if stage == "everything":  # that surrounds the loss
        algorithm = toy.grpo(
            **once,
            advantage=WhitenedGroupDeviation(),
            kl=ExactKLInLoss(),
            dynamic_sampling=9,
            entropy_coef=0.1,
            ptx_coef=0.3,
            overlong_filter=True,
            correction=Masked(),
        )
        return toy.policy_gradient(
            algorithm,
            engine=engine,
            reference=toy.actor("reference"),
            samples=3,
            test=toy.prompt_set(8, "held out"),
            lr=LR,
            ema_decay=0.5,
            pretraining=toy.supervised_set(),
        )
    kl = AdaptiveKLInReward(target=0.1, horizon=100)
    return toy.policy_gradient(
        getattr(toy, stage)(kl=kl, **once),
        engine=engine,
        reference=toy.actor("reference"),
        samples=2 if stage == "rloo" else 1,
        test=toy.prompt_set(8, "held out"),
        lr=LR,
        critic_lr=LR,
    )


def first_step(trainer: Any) -> dict[str, Any]:
    """Held-out numbers, then one step; its numbers, and the weights after it."""
    metrics = trainer.evaluate()
    metrics.merge(trainer.step())
    finished = metrics.reduce(collectives.all_sum, collectives.all_max)
    states = [engine.state() for engine in engines(trainer)]
    average = None if not hasattr(trainer, "models") else trainer.models.average
    states += [] if average is None else [average.module.state_dict() if collectives.is_main() else {}]
    return {
        "metrics": finished,
        "state": states,
        "coefficient": trainer.state.kl_coef if hasattr(trainer, "state") else 0.0,
    }


def engines(trainer: Any) -> list[Any]:
    if hasattr(trainer, "engine"):
        return [trainer.engine]
    return [engine for engine in (trainer.models.actor, trainer.models.critic) if engine is not None]


def work(folder: Path) -> dict[str, Any]:
    """What each of two ranks finds."""
    from tests.trainers import toy

    found: dict[str, Any] = {
        f"{stage} {name}": first_step(build(toy, stage, ENGINES[name])) for stage, name in CASES
    }
    prompts = toy.next_prompts(build(toy, "ppo", Plain()))
    found["group"], found["index"] = prompts.group, prompts.index
    found["minibatches"] = minibatches(toy)
    for name in ("plain", "zero3"):
        found[f"responses {name}"] = responses(toy, ENGINES[name])
        found[f"resumed {name}"] = resumed(toy, ENGINES[name], folder / name)
    return found


def responses(toy: ModuleType, engine: EngineConfig) -> list[tuple[int, list[int]]]:
    """This rank's next rollout: each response's group and tokens."""
    rollout = toy.next_rollout(build(toy, "rloo", engine))
    rows = zip(rollout.group.tolist(), rollout.responses, rollout.mask, strict=True)
    return [(group, tokens[mask].tolist()) for group, tokens, mask in rows]


def minibatches(toy: ModuleType) -> list[Tensor]:
    """The groups of this rank's rows in each of two minibatches, in two epochs."""
    trainer = toy.policy_gradient(toy.ppo(epochs=2, minibatches=2), samples=2)
    scored = trainer.collector.collect(0, Clock()).scored
    experience = trainer.estimate(trainer.measure(scored), trainer.scorer.values(scored.rollout))
    return [part.rollout.group for part in trainer.minibatches(experience)]


def resumed(toy: ModuleType, engine: EngineConfig, folder: Path) -> list[list[dict[str, Tensor]]]:
    """Weights after three steps of PPO at once, and after one, a checkpoint and two more."""
    whole, stopped, continued = (build(toy, "ppo", engine) for _ in range(3))
    for _ in range(3):
        whole.step()
    stopped.step()
    checkpoint = checkpoints.write(folder, 1, stopped.save, keep=1)
    continued.load(checkpoint)
    for _ in range(2):
        continued.step()
    assert continued.state == whole.state
    return [[engine.state() for engine in engines(trainer)] for trainer in (whole, continued)]


@pytest.fixture(scope="module")
def found(two_ranks: Callable[[str, str], list[Any]]) -> list[Any]:
    return two_ranks(__file__, "work")


@pytest.fixture(scope="module")
def alone(toy: ModuleType) -> dict[str, Any]:
    return {stage: first_step(build(toy, stage, Plain())) for stage in (*STAGES, "everything")}


@pytest.mark.parametrize(("stage", "engine"), CASES)
def test_the_first_step_of_two_ranks_is_that_of_one(
    found: list[Any], alone: dict[str, Any], stage: str, engine: str
) -> None:
    both, expected = found[0][f"{stage} {engine}"], alone[stage]
    for state, own in zip(both["state"], expected["state"], strict=True):
        assert state.keys() == own.keys()
        for name in own:
            # Gradients differ by their rounding, some 1e-8, and Adam's first step lr·g / (|g| + 1e-5)
            # turns that into at most 1e-3 of the learning rate where g is near 0.
            torch.testing.assert_close(state[name], own[name], rtol=1e-5, atol=1e-3 * LR, msg=name)
    assert both["coefficient"] == pytest.approx(expected["coefficient"], rel=1e-6)


@pytest.mark.parametrize(("stage", "engine"), CASES)
def test_two_ranks_report_what_one_does(
    found: list[Any], alone: dict[str, Any], stage: str, engine: str
) -> None:
    first, second = (ranks[f"{stage} {engine}"]["metrics"] for ranks in found)
    expected = alone[stage]["metrics"]
    assert first == second
    assert first.keys() == expected.keys()
    for name, value in expected.items():
        if not name.startswith(("time/", "throughput/", "memory/")) and "ledger" not in name:
            assert first[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_ranks_share_the_prompts_and_split_no_group(found: list[Any], toy: ModuleType) -> None:
    whole = toy.next_prompts(build(toy, "ppo", Plain()))
    assert torch.equal(found[0]["group"], whole.group[0::2])
    assert torch.equal(found[1]["group"], whole.group[1::2])
    assert torch.equal(found[0]["index"], whole.index[0::2])


def test_minibatches_are_those_of_one_rank_shared_equally(found: list[Any], toy: ModuleType) -> None:
    alone = minibatches(toy)
    assert len({tuple(groups.tolist()) for groups in alone}) == len(alone) == 4
    for whole, *parts in zip(alone, *(ranks["minibatches"] for ranks in found), strict=True):
        assert [len(part) for part in parts] == [len(whole) // 2] * 2
        assert torch.equal(torch.cat(parts).sort().values, whole.sort().values)


@pytest.mark.parametrize("engine", ["plain", "zero3"])
def test_a_row_gets_the_same_tokens_on_two_ranks(found: list[Any], toy: ModuleType, engine: str) -> None:
    """Eight prompts with two responses each, dealt by prompt."""
    alone = responses(toy, Plain())
    both = [rank[f"responses {engine}"] for rank in found]
    assert sorted(both[0] + both[1]) == sorted(alone)
    assert len({group for group, _ in alone}) == 8
    assert [len(rows) for rows in both] == [8, 8]


@pytest.mark.parametrize("engine", ["plain", "zero3"])
def test_two_ranks_continue_bitwise(found: list[Any], toy: ModuleType, engine: str) -> None:
    whole, continued = found[0][f"resumed {engine}"]
    assert all(toy.equal(one, other) for one, other in zip(whole, continued, strict=True))
