"""A NaN or an infinity, wherever it comes from, is named; the run stops, or all ranks leave the step out."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.policy_losses import Clipped
from rlhf.algorithms.value_losses import ClippedValueLoss
from rlhf.distributed import checkpoints
from rlhf.distributed.collectives import rank
from rlhf.distributed.engine_config import EngineConfig, Plain, ZeRO
from rlhf.rewards.reward import FunctionReward
from rlhf.run_folder import RunFolder
from rlhf.trainers.faults import Faults, NonFinite
from rlhf.trainers.loop import Cadence, run

STAGES = ["supervised", "reward_model", "preference", "kto", "policy_gradient"]
BAD = [math.nan, math.inf, -math.inf]


def mean(metrics: Any, name: str) -> float:
    total, count = metrics.pairs[name]
    return total / count


def engines(trainer: Any) -> tuple[Any, ...]:
    return (trainer.engine,) if hasattr(trainer, "engine") else (trainer.models.actor, trainer.models.critic)


def skipping(trainer: Any) -> Any:
    trainer.faults = Faults(NonFinite.skip)
    if hasattr(trainer, "collector"):
        trainer.collector.faults = trainer.faults
    if hasattr(trainer, "updater"):
        trainer.updater.faults = trainer.faults
    return trainer


def everything(toy: ModuleType, trainer: Any) -> dict[str, Any]:
    """Parameters and Adam's moments."""
    found: dict[str, Any] = dict(toy.parameters(*engines(trainer)))
    for engine in engines(trainer):
        for number, state in engine._optimizer.state_dict()["state"].items():
            found |= {f"{engine.name}.{number}.{name}": value.clone() for name, value in state.items()}
    return found


# What is named


def poison_weight(module: Any, bad: float) -> None:
    """One row of the head, so that one number of each position is bad."""
    with torch.no_grad():
        module.head.weight[0, 0] = bad


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_weight_of_the_policy_is_named_by_the_tokens_it_spoils(toy: ModuleType, bad: float) -> None:
    trainer = toy.policy_gradient()
    trainer.step()
    poison_weight(trainer.models.actor.module, bad)
    prompt = trainer.train.texts.prompts(
        trainer.collector.sample(trainer.collector.prompts(trainer.state.drawn))
    )[0]
    message = (
        rf"^rollout 2: the sampler's log-prob of token 0 of the response to prompt '{prompt}' \(row \d\)"
    )
    with pytest.raises(FloatingPointError, match=message + " is (nan|-inf)"):
        trainer.step()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("exact_kl", [True, False])
def test_a_bad_weight_of_the_reference_is_named(toy: ModuleType, bad: float, exact_kl: bool) -> None:
    trainer = toy.policy_gradient(exact_kl=exact_kl)
    poison_weight(trainer.models.reference.module, bad)
    with pytest.raises(
        FloatingPointError, match=r"rollout 1: the (reference's log-prob|exact KL).* of token"
    ):
        trainer.step()


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_weight_of_the_critic_is_named(toy: ModuleType, bad: float) -> None:
    trainer = toy.policy_gradient()
    poison_weight(trainer.models.critic.module, bad)
    with pytest.raises(FloatingPointError, match="rollout 1: the critic's value of token 0 of the response"):
        trainer.step()


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_score_is_named(toy: ModuleType, bad: float) -> None:
    def broken(prompts: list[str], responses: list[str], columns: list[dict[str, Any]]) -> list[float]:
        return [bad if row == 5 else 0.0 for row in range(len(prompts))]

    class Model:
        """A reward that checks nothing."""

        def __call__(self, rollout: Any, texts: Any) -> Tensor:
            return torch.tensor(broken(texts.prompts(rollout), [], []))

    for reward in (FunctionReward(function=broken, name="broken"), Model()):
        trainer = toy.policy_gradient(reward=reward)
        prompt = trainer.train.texts.prompts(
            trainer.collector.sample(trainer.collector.prompts(trainer.state.drawn))
        )[5]
        with pytest.raises(FloatingPointError, match=rf"rollout 1: .*{prompt}.*") as caught:
            trainer.step()
        assert str(bad) in str(caught.value)
        assert trainer.done == 0


@dataclass(kw_only=True, slots=True)
class BrokenLoss(Clipped):
    """PPO's loss with one bad token in the row that has the lowest sampled log-prob."""

    bad: float

    def __call__(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        loss = Clipped.__call__(self, logprobs, old_logprobs, advantages, mask)
        return loss + torch.where(torch.arange(loss.shape[1]) == 0, self.bad, 0.0)


@dataclass(kw_only=True, slots=True)
class BrokenValueLoss(ClippedValueLoss):
    """The critic's loss with bad first tokens."""

    bad: float

    def __call__(self, values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
        loss = ClippedValueLoss.__call__(self, values, old_values, returns, mask)
        return loss + torch.where(torch.arange(loss.shape[1]) == 0, self.bad, 0.0)


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_loss_is_named_though_its_gradient_is_finite(toy: ModuleType, bad: float) -> None:
    for model, changes in (
        ("actor", {"policy_loss": BrokenLoss(bad=bad)}),
        ("critic", {"value_loss": BrokenValueLoss(bad=bad)}),
    ):
        trainer = toy.policy_gradient(toy.ppo(**changes))
        before = toy.parameters(getattr(trainer.models, model))
        message = f"rollout 1: the {model}'s loss of token 0 of the response to prompt '.+' .* is {bad}"
        with pytest.raises(FloatingPointError, match=message):
            trainer.step()
        assert toy.equal(toy.parameters(getattr(trainer.models, model)), before)


def spoil_logprobs(trainer: Any, change: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """From now on the actor says what ``change`` makes of log-probs and mask; the gradient stays."""

    def hook(_: Any, inputs: tuple[Any, ...], said: Any) -> Any:
        return said._replace(logprobs=change(said.logprobs, inputs[1]))

    return trainer.engine.module.register_forward_hook(hook)


def test_a_bad_row_of_a_demonstration_is_named(toy: ModuleType) -> None:
    trainer = toy.supervised()
    trainer.step()
    rows = trainer._next_rows().tolist()
    length = trainer.train.lengths[rows[2]]
    spoil_logprobs(
        trainer, lambda found, mask: found * torch.where(mask.sum(1) == length, math.nan, 1.0)[:, None]
    )
    named = [row for row in rows if trainer.train.lengths[row] == trainer.train.lengths[rows[2]]]
    with pytest.raises(
        FloatingPointError, match=r"^step 2: the loss of token \d+ of row \d+ is nan$"
    ) as caught:
        trainer.step()
    assert int(str(caught.value).split("row ")[1].split(" ")[0]) in named


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_weight_of_a_supervised_or_reward_model_is_named(toy: ModuleType, bad: float) -> None:
    trainer = toy.supervised()
    poison_weight(trainer.engine.module, bad)
    with pytest.raises(FloatingPointError, match=r"^step 1: the loss of token \d+ of row \d+ is (nan|inf)$"):
        trainer.step()
    trainer = toy.reward_model()
    poison_weight(trainer.engine.module, bad)
    with pytest.raises(
        FloatingPointError, match=r"^step 1: the score of response 0 of prompt \d+ is (nan|-?inf)$"
    ):
        trainer.step()


def test_a_bad_loss_that_hangs_on_no_parameter_is_never_passed_over(toy: ModuleType) -> None:
    trainer = skipping(toy.reward_model())
    scores = trainer._scores
    trainer._scores = lambda part: torch.where(scores(part) < math.inf, math.nan, scores(part))
    with pytest.raises(FloatingPointError, match=r"step 1: the score .* is nan, and the gradient is finite"):
        trainer.step()


def test_an_infinite_score_is_named_rather_than_its_loss(toy: ModuleType) -> None:
    trainer = toy.reward_model()
    scores = trainer._scores

    def broken(part: Any) -> Tensor:
        return scores(part) + torch.tensor([0.0, math.inf])

    trainer._scores = broken
    with pytest.raises(FloatingPointError, match=r"^step 1: the score of response 1 of prompt \d+ is inf$"):
        trainer.step()


def spoil_gradient(engine: Any, bad: float = math.nan) -> str:
    """From now on the gradient of one parameter is bad; its name."""
    name, parameter = list(engine.module.named_parameters())[2]
    parameter.register_hook(lambda gradient: gradient * bad)
    return name


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("config", [Plain(), Plain(clip=None)], ids=["clipped", "unclipped"])
def test_a_bad_gradient_is_named_by_its_parameter(toy: ModuleType, stage: str, config: EngineConfig) -> None:
    for number in range(2 if stage == "policy_gradient" else 1):
        trainer = getattr(toy, stage)(engine=config)
        trainer.step()
        engine = engines(trainer)[number]
        name, before = spoil_gradient(engine), toy.parameters(engine)
        message = rf"2: {engine.name}: gradient norm of step \d is nan, first in that of {name}; no parameter"
        with pytest.raises(FloatingPointError, match=message):
            trainer.step()
        assert toy.equal(toy.parameters(engine), before)


# Skipping


@pytest.mark.parametrize("stage", STAGES)
def test_a_skipped_step_moves_nothing_and_the_next_one_does(toy: ModuleType, stage: str) -> None:
    trainer = skipping(getattr(toy, stage)())
    first = trainer.step()
    assert mean(first, "faults/skipped_steps") == 0
    hooks = []
    for engine in engines(trainer):
        parameter = next(iter(engine.module.parameters()))
        hooks.append(parameter.register_hook(lambda gradient: gradient * math.nan))
    before = everything(toy, trainer)
    skipped = trainer.step()
    assert toy.equal(everything(toy, trainer), before)
    assert mean(skipped, "faults/skipped_steps") == (8 if stage == "policy_gradient" else 1)
    assert "loss" not in skipped.pairs
    assert trainer.done == 2
    rate = "reward/lr" if stage == "reward_model" else "actor/lr"
    for hook in hooks:
        hook.remove()
    third = trainer.step()
    assert not toy.equal(toy.parameters(*engines(trainer)), before)
    assert all(math.isfinite(mean(third, name)) for name in third.pairs)
    rates = [mean(metrics, rate) for metrics in (first, skipped, third)]
    assert rates[0] - rates[1] == pytest.approx(rates[1] - rates[2])  # the schedule went on


def test_a_run_that_skips_a_step_is_a_run_without_it(toy: ModuleType) -> None:
    """Nothing of the bad step is left in the engine: not a gradient, not a moment."""
    found = []
    for spoiled in (True, False):
        trainer = skipping(toy.supervised())
        trainer.step()
        if spoiled:
            hook = spoil_logprobs(trainer, lambda found, _: found * math.inf)
            trainer.step()
            hook.remove()
        else:
            trainer.done += 1
        trainer.step()
        found.append(everything(toy, trainer))
    assert toy.equal(*found)


@pytest.mark.parametrize("culprit", ["reward", "reference", "critic"])
def test_a_rollout_that_is_not_finite_is_not_learnt_from(toy: ModuleType, culprit: str) -> None:
    broken = [culprit == "reward"]

    def score(prompts: list[str], responses: list[str], columns: list[dict[str, Any]]) -> list[float]:
        return [math.nan if broken[0] else float(len(response)) for response in responses]

    trainer = skipping(toy.policy_gradient(reward=FunctionReward(function=score, name="score")))
    if culprit != "reward":
        module = getattr(trainer.models, culprit).module
        weight = module.head.weight.detach().clone()
        poison_weight(module, math.nan)
    before = everything(toy, trainer)
    state = (trainer.state.kl_coef, trainer.state.actor_steps)
    metrics = trainer.step()
    after = everything(toy, trainer)
    assert all(torch.equal(after[name], before[name]) or after[name].isnan().any() for name in before)
    assert (trainer.state.kl_coef, trainer.state.actor_steps) == state
    assert mean(metrics, "faults/skipped_rollouts") == 1
    assert "reward/score" not in metrics.pairs
    assert trainer.samples() == []
    assert trainer.headline({}) == "skipped: not finite"
    broken[0] = False
    if culprit != "reward":
        with torch.no_grad():
            module.head.weight.copy_(weight)
    metrics = trainer.step()
    assert mean(metrics, "faults/skipped_rollouts") == mean(metrics, "faults/skipped_steps") == 0
    assert trainer.done == 2
    assert all(math.isfinite(mean(metrics, name)) for name in metrics.pairs)


def test_actor_and_critic_are_skipped_each_by_itself(toy: ModuleType) -> None:
    trainer = skipping(toy.policy_gradient(toy.ppo(value_loss=BrokenValueLoss(bad=math.inf), epochs=3)))
    critic, actor = (toy.parameters(engine) for engine in (trainer.models.critic, trainer.models.actor))
    metrics = trainer.step()
    assert toy.equal(toy.parameters(trainer.models.critic), critic)
    assert not toy.equal(toy.parameters(trainer.models.actor), actor)
    assert mean(metrics, "faults/skipped_steps") == trainer.state.actor_steps == 6
    assert "critic/loss" not in metrics.pairs


@pytest.mark.parametrize("stage", STAGES)
def test_an_evaluation_that_is_not_finite_stops_or_is_left_out(toy: ModuleType, stage: str) -> None:
    pairs = dict.fromkeys(("reward_model", "preference"), toy.preference_set)
    sets = {"supervised": toy.supervised_set, "kto": toy.labelled_set, **pairs}
    trainer = getattr(toy, stage)(test=sets.get(stage, toy.prompt_set)(4, "held out"))
    assert "eval/faults/skipped" not in trainer.evaluate().pairs
    poison_weight(engines(trainer)[0].module, math.nan)
    with pytest.raises(FloatingPointError, match=r"^evaluation after (step|rollout) 0: the .* is nan"):
        trainer.evaluate()
    assert skipping(trainer).evaluate().pairs == {"eval/faults/skipped": (1.0, 1.0)}


def test_skips_are_counted_only_where_they_may_happen(toy: ModuleType) -> None:
    for stage in STAGES:
        names = getattr(toy, stage)().step().pairs
        assert not any(name.startswith("faults/") for name in names)


# In the loop


@pytest.mark.parametrize("stage", STAGES)
def test_a_fault_loses_nothing(toy: ModuleType, stage: str, tmp_path: Path) -> None:
    """The last checkpoint stands, and the run continues from it as if nothing had happened."""
    whole, stopped, resumed = (getattr(toy, stage)(total=4) for _ in range(3))
    step = stopped.step

    def breaks() -> Any:
        if stopped.done == 2:
            spoil_gradient(engines(stopped)[0])
        return step()

    stopped.step = breaks
    folder = RunFolder(tmp_path / "run")
    folder.claim("", resume=False)
    with pytest.raises(FloatingPointError, match=r" 3: .*gradient norm"):
        run(stopped, folder, Cadence(checkpoint_every=1), resume=False)
    checkpoint = checkpoints.latest(folder.checkpoints)
    assert checkpoint is not None
    assert checkpoint.name == "step_000002"
    assert not folder.model.exists()
    run(resumed, folder, Cadence(checkpoint_every=1), resume=True)
    folder.close()
    for _ in range(4):
        whole.step()
    assert toy.equal(everything(toy, resumed), everything(toy, whole))


def test_a_run_goes_on_over_skipped_steps(toy: ModuleType, tmp_path: Path) -> None:
    for stage in STAGES:
        trainer = skipping(getattr(toy, stage)(total=3))
        spoil_gradient(engines(trainer)[0])
        folder = RunFolder(tmp_path / stage)
        folder.claim("", resume=False)
        run(trainer, folder, Cadence(), resume=False)
        folder.close()
        assert len((folder.path / "metrics.jsonl").read_text().splitlines()) == 3


# On two ranks

CONFIGS = {"plain": Plain()} | {
    f"zero{stage}": ZeRO(stage=stage, persistence_threshold=0) for stage in range(4)
}


def attempt(action: Callable[[], Any]) -> str:
    try:
        action()
    except FloatingPointError as error:
        return str(error)
    return "nothing"


def bad_on_rank_1(logprobs: Tensor, _: Tensor) -> Tensor:
    """An infinity, whose gradient is finite, at the first row's targets of rank 1."""
    first = torch.arange(len(logprobs))[:, None] == 0
    return torch.where((logprobs != 0) & first & (rank() == 1), -math.inf, logprobs)


def two_supervised(toy: Any, config: EngineConfig) -> dict[str, Any]:
    """A step with a bad row on rank 1, skipped; one more; then the same, stopping."""
    trainer = skipping(toy.supervised(engine=config))
    trainer.step()
    before = trainer.engine.state()
    hook = spoil_logprobs(trainer, bad_on_rank_1)
    skipped = trainer.step()
    found: dict[str, Any] = {"before": before, "skipped": trainer.engine.state(), "names": set(skipped.pairs)}
    hook.remove()
    trainer.step()
    found["after"] = trainer.engine.state()
    spoil_logprobs(trainer, bad_on_rank_1)
    trainer.faults = Faults(NonFinite.stop)
    found["message"] = attempt(trainer.step)
    without = toy.supervised(engine=config)
    without.step()
    without.done += 1
    without.step()
    found["without"] = without.engine.state()
    return found


def two_policy_gradient(toy: Any) -> dict[str, Any]:
    """A reward that fails on rank 1 only."""
    broken = [True]

    def score(prompts: list[str], responses: list[str], columns: list[dict[str, Any]]) -> list[float]:
        bad = broken[0] and rank() == 1
        return [math.nan if bad and row == 2 else 1.0 * len(text) for row, text in enumerate(responses)]

    trainer = toy.policy_gradient(reward=FunctionReward(function=score, name="score"))
    found: dict[str, Any] = {"message": attempt(trainer.step)}
    before = toy.parameters(*engines(trainer))
    skipped = skipping(trainer).step()
    found["unmoved"] = toy.equal(toy.parameters(*engines(trainer)), before)
    found["skipped"] = mean(skipped, "faults/skipped_rollouts")
    broken[0] = False
    found["names"] = set(trainer.step().pairs)
    measure = trainer.measure

    def off(scored: Any) -> Any:
        measured = measure(scored)
        measured.old_logprobs[0, 0] -= 0.01 * rank()
        return measured

    trainer.measure = off
    found["ledger"] = attempt(trainer.step)
    return found


def work(folder: Path) -> dict[str, Any]:
    from tests.trainers import toy

    found = {name: two_supervised(toy, config) for name, config in CONFIGS.items()}
    found["rl"] = two_policy_gradient(toy)
    return found


@pytest.fixture(scope="module")
def pair(two_ranks: Callable[[str, str], list[Any]]) -> list[Any]:
    return two_ranks(__file__, "work")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_bad_row_on_one_rank_is_skipped_by_all(pair: list[Any], name: str) -> None:
    found = pair[0][name]
    assert found["before"].keys() == found["skipped"].keys()
    assert all(torch.equal(tensor, found["before"][key]) for key, tensor in found["skipped"].items())
    assert all(torch.equal(tensor, found["without"][key]) for key, tensor in found["after"].items())
    assert any(not torch.equal(tensor, found["before"][key]) for key, tensor in found["after"].items())
    assert found["names"] == pair[1][name]["names"]  # or the ranks could not add up their metrics


@pytest.mark.parametrize("name", CONFIGS)
def test_a_bad_row_on_one_rank_stops_all_and_is_named_by_all(pair: list[Any], name: str) -> None:
    messages = {pair[rank][name]["message"] for rank in range(2)}
    assert len(messages) == 1
    assert "step 4: the loss of token" in next(iter(messages))
    assert next(iter(messages)).endswith("is inf (rank 1)")


def test_a_bad_score_on_one_rank_stops_or_skips_the_rollout_of_all(pair: list[Any]) -> None:
    for found in (pair[0]["rl"], pair[1]["rl"]):
        assert found["message"].startswith("rollout 1: score gave nan to response 2, prompt ")
        assert found["message"].endswith("(rank 1)")
        assert found["unmoved"]
        assert found["skipped"] == 1
    assert pair[0]["rl"]["names"] == pair[1]["rl"]["names"]


def test_a_ledger_that_does_not_add_up_on_one_rank_stops_all(pair: list[Any]) -> None:
    messages = {pair[rank]["rl"]["ledger"] for rank in range(2)}
    assert len(messages) == 1
    assert "0.01 at token 0 of the response to prompt" in next(iter(messages))
