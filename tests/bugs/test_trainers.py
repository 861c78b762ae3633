"""Training loops as they broke in other frameworks."""

import copy
import functools
import inspect
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlhf.algorithms import kl as kl_components
from rlhf.algorithms import policy_losses, value_losses
from rlhf.algorithms.aggregation import TokenMean
from rlhf.algorithms.kl import KL, AdaptiveKLInReward, KLInReward
from rlhf.algorithms.policy_losses import Clipped, PolicyLoss, Reinforce
from rlhf.algorithms.preference_losses import KTO
from rlhf.algorithms.preferences import BradleyTerry
from rlhf.algorithms.value_losses import ClippedValueLoss, ValueLoss
from rlhf.cli import rl
from rlhf.cli.application import run as run_command
from rlhf.data.encoding import Encoded
from rlhf.distributed import checkpoints
from rlhf.distributed.engine import Engine, TorchEngine, cast_parameters
from rlhf.distributed.engine_config import Plain
from rlhf.kernels.linear_token_loss import SweptLoss, TokenLoss
from rlhf.models.saving import save_model
from rlhf.ops.logprobs import TokenLogprobs
from rlhf.ops.masking import Total
from rlhf.rewards.reward import FunctionReward
from rlhf.run_folder import RunFolder
from rlhf.trainers import rollout_metrics
from rlhf.trainers.loop import Cadence
from rlhf.trainers.loop import run as run_loop

OFFLINE = ("supervised", "reward_model", "preference", "kto")
STAGES = (*OFFLINE, "ppo", "rloo", "grpo")


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    from tests.trainers import toy as module

    return module


@dataclass(kw_only=True, slots=True)
class WatchedLoss(Clipped):
    """PPO's loss, which also notes what it was given."""

    seen: list[tuple[Tensor, ...]] = field(default_factory=list)

    def __call__(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        loss = Clipped.__call__(self, logprobs, old_logprobs, advantages, mask)
        self.seen.append((logprobs.detach(), old_logprobs, advantages, mask, loss.detach()))
        return loss

    def ratios(self) -> Tensor:
        return torch.cat([(new - old).exp()[mask] for new, old, _, mask, _ in self.seen])


@dataclass(kw_only=True, slots=True)
class WatchedValueLoss(ClippedValueLoss):
    """The critic's loss, which also notes what it was given."""

    seen: list[tuple[Tensor, ...]] = field(default_factory=list)

    def __call__(self, values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
        loss = ClippedValueLoss.__call__(self, values, old_values, returns, mask)
        self.seen.append((values.detach(), old_values, returns, loss.detach()))
        return loss


@dataclass(kw_only=True, slots=True)
class WatchedMean(TokenMean):
    """The token mean, which also notes its masks and weights."""

    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, mask: Tensor, total: Total) -> Tensor:
        weights = TokenMean.__call__(self, mask, total)
        self.seen.append((mask, weights))
        return weights


def build(toy: ModuleType, stage: str, **changes: Any) -> Any:
    if stage in OFFLINE:
        return getattr(toy, stage)(batch_size=5, **changes)  # of 12 rows: epochs end inside a step
    kl = AdaptiveKLInReward(target=0.1, horizon=50)
    algorithm = toy.grpo() if stage == "grpo" else getattr(toy, stage)(kl=kl)
    return toy.policy_gradient(algorithm, prompts=4, samples=2, **changes)


def engines(trainer: Any) -> tuple[Any, ...]:
    return (trainer.engine,) if hasattr(trainer, "engine") else (trainer.models.actor, trainer.models.critic)


def mean(metrics: Any, name: str) -> float:
    total, count = metrics.pairs[name]
    return total / count


def experience_of(trainer: Any, rollout: Any = None) -> Any:
    if rollout is None:
        rollout = trainer.collector.sample(trainer.collector.prompts(trainer.state.drawn))
    measured = trainer.measure(trainer.collector.score(rollout, trainer.train))
    return trainer.estimate(measured, trainer.scorer.values(rollout))


# 1. Loss normalisation


def test_loss_scale_ignores_updates_per_rollout(toy: ModuleType) -> None:
    for minibatches in (1, 2, 4):
        watched = WatchedMean()
        algorithm = toy.ppo(aggregation=watched, policy_loss=Reinforce(), epochs=1, minibatches=minibatches)
        trainer = toy.policy_gradient(algorithm, lr=1e-30, critic_lr=1e-30, micro_batch=1)
        experience = experience_of(trainer)
        norms = [own_norm(trainer, part) for part in trainer.minibatches(experience)]
        metrics = trainer.step()
        assert mean(metrics, "actor/grad_norm") == pytest.approx(sum(norms) / minibatches, rel=1e-4)
        for mask, weights in watched.seen:  # the denominator is the window of this optimiser step
            assert torch.equal(weights > 0, mask)
            assert float(weights.sum()) == pytest.approx(1.0)


def own_norm(trainer: Any, part: Any) -> float:
    """Norm of the gradient of −mean(A·log π) over the tokens of one minibatch."""
    actor = copy.deepcopy(trainer.models.actor.module)
    rollout = part.rollout
    first = rollout.prompt_mask.shape[1]
    logprobs = actor(rollout.tokens, rollout.attention_mask, first, 0.9).logprobs
    (-(part.advantages * logprobs)[rollout.mask].mean()).backward()
    return float(torch.cat([parameter.grad.flatten() for parameter in actor.parameters()]).norm())


@dataclass(kw_only=True, slots=True)
class One(PolicyLoss):
    """A loss of 1 everywhere, padding included."""

    def __call__(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        return torch.ones_like(logprobs)


@dataclass(kw_only=True, slots=True)
class OneForValues(ValueLoss):
    """The same for a critic."""

    def __call__(self, values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
        return torch.ones_like(values)


def minus_one(
    tokens: Tensor, attention_mask: Tensor, first: int, *, wanted: Tensor, token_loss: TokenLoss
) -> SweptLoss:
    """A policy to which every token, prompt and padding included, has the log-prob −1."""
    ones = torch.ones(tokens[:, first:].shape)
    losses = token_loss(TokenLogprobs(-ones, ones))
    return SweptLoss(losses.sum(), losses, -ones, ones)


def steps_of(engine: Any) -> list[float]:
    """What each optimiser step of this engine will have descended; nothing moves."""
    losses, steps = [0.0], []
    engine.backward = lambda loss: losses.append(float(loss.detach()))

    def step() -> float:
        steps.append(sum(losses))
        losses.clear()
        return 0.0

    engine.step = step
    return steps


@pytest.mark.parametrize("stage", [*OFFLINE, "ppo", "grpo"])
def test_denominator_counts_exactly_the_tokens_in_the_loss(toy: ModuleType, stage: str) -> None:
    if stage == "supervised":
        rows = toy.supervised_set(12)
        rows.encoded[3] = Encoded(
            tokens=rows.encoded[3].tokens, targets=[False] * len(rows.encoded[3].tokens)
        )
        trainer = toy.supervised(train=rows, batch_size=12, micro_batch_size=5)
        trainer.engine.module.forward = minus_one
    elif stage == "reward_model":
        trainer = toy.reward_model(batch_size=12, micro_batch_size=5)
        trainer.loss = OneForComparisons()
    elif stage in ("preference", "kto"):
        trainer = getattr(toy, stage)(batch_size=12, micro_batch_size=5)
        trainer.train.loss = OneForPreferences()
    else:
        critic = OneForValues() if stage == "ppo" else None
        algorithm = getattr(toy, stage)(policy_loss=One(), kl=KLInReward(), value_loss=critic)
        trainer = toy.policy_gradient(algorithm, samples=2, micro_batch=3)
    found = [steps_of(engine) for engine in engines(trainer) if engine is not None]
    trainer.step()
    updates = 4 if stage in ("ppo", "grpo") else 1  # two epochs of two minibatches
    for steps in found:
        assert steps == [pytest.approx(1.0, rel=1e-6)] * updates


class OneForPreferences(KTO):
    """Each pair or response costs 1."""

    def __call__(self, first: Any, *others: Any) -> Tensor:
        return torch.ones_like(first.logprobs)


class OneForComparisons(BradleyTerry):
    """Each comparison costs 1."""

    def __call__(self, chosen: Any, *others: Any, **named: Any) -> Tensor:
        return torch.ones_like(chosen)


def concrete(base: type, module: ModuleType) -> list[Any]:
    """One of each component of a module, with its defaults."""
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, base)]
    return [kind() for kind in kinds if not inspect.isabstract(kind)]


def test_token_selection_covers_the_whole_minibatch() -> None:
    """No component chooses tokens by a statistic of the rows it is given, which would be a micro-batch's.

    Every loss here says the same of a row alone as among others. One that selects tokens has to be given the
    choice, made over the minibatch where the weights are.
    """
    draw = torch.Generator().manual_seed(0)
    new, old, advantages = (torch.randn(6, 5, generator=draw) for _ in range(3))
    mask = torch.arange(5) < torch.tensor([5, 2, 4, 1, 3, 5])[:, None]
    losses: list[Callable[..., Tensor]] = concrete(PolicyLoss, policy_losses)
    values = concrete(ValueLoss, value_losses)
    assert len(losses) >= 2
    assert len(values) >= 2
    placements = [kl for kl in concrete(KL, kl_components) if not getattr(kl, "needs_exact", False)]
    losses += values
    losses += [lambda x, y, _, m, kl=kl: kl.loss(x, y, m, 0.1) for kl in placements]
    losses += [lambda x, y, _, m, kl=kl: kl.reward(x, y, m, 0.1) for kl in placements]
    columns = (new, old, advantages, mask)
    for loss in losses:
        whole = loss(*columns)
        for rows in torch.arange(6).split(4):
            assert torch.equal(loss(*(column[rows] for column in columns)), whole[rows]), loss


def test_critic_gradient_ignores_micro_batch_size(toy: ModuleType) -> None:
    found = []
    for micro in (8, 1, 3):
        trainer = toy.policy_gradient(toy.ppo(epochs=1, minibatches=1), micro_batch=micro, critic_lr=1e-3)
        metrics = trainer.step()
        norms = [mean(metrics, name) for name in ("critic/grad_norm", "actor/grad_norm", "critic/loss")]
        found.append((norms, toy.parameters(trainer.models.critic)))
    for norms, parameters in found[1:]:
        assert norms == pytest.approx(found[0][0], rel=1e-4)
        # A gradient off by 1e-7 moves Adam's first step by up to 1e-2 of the learning rate.
        torch.testing.assert_close(parameters, found[0][1], rtol=0, atol=1e-5)


def test_metrics_are_sums_over_counts(toy: ModuleType) -> None:
    names = ("loss", "actor/kl_old", "actor/clip_fraction", "critic/loss", "actor/entropy", "rollout/length")
    found = []
    for micro in (8, 3, 1):  # micro-batches of unequal rows and, by their lengths, of unequal tokens
        trainer = toy.policy_gradient(toy.ppo(epochs=2, minibatches=1), micro_batch=micro)
        watched = [trainer.step() for _ in range(2)][-1]
        found.append([mean(watched, name) for name in names])
    assert found[0][1] > 0  # the second epoch is off policy
    assert found[0][2] > 0
    assert found[1] == pytest.approx(found[0], rel=5e-3)  # the updates in between differ by rounding
    assert found[2] == pytest.approx(found[0], rel=5e-3)


# 2. Log-probability consistency


@pytest.mark.parametrize("source", ["LLAMA", "GPT2"])
def test_first_minibatch_ratio_is_exactly_one(toy: ModuleType, source: str) -> None:
    for step in range(2):
        watched = WatchedLoss()
        trainer = toy.policy_gradient(
            toy.ppo(policy_loss=watched, epochs=1, minibatches=1),
            source=getattr(toy, source),
            micro_batch=3,
            prompts=9,
        )
        for _ in range(step):
            trainer.step()
        watched.seen.clear()
        metrics = trainer.step()
        # Scored in the rows' own order and updated in another: other micro-batches, other rounding.
        assert (watched.ratios() - 1).abs().max() < 1e-5
        assert mean(metrics, "actor/clip_fraction") == 0.0


def test_ratio_stays_bounded_over_four_epochs(toy: ModuleType) -> None:
    watched = WatchedLoss()
    trainer = toy.policy_gradient(
        toy.ppo(policy_loss=watched, epochs=4, minibatches=1), prompts=16, micro_batch=16, lr=3e-3, total=6
    )
    metrics = [trainer.step() for _ in range(6)]
    ratios = watched.ratios()
    assert (ratios - 1).abs().max() > 0.05  # the policy does move
    assert ratios.max() < 2.5
    assert ratios.min() > 0.4
    assert max(mean(one, "actor/kl_old") for one in metrics) < 0.05


# 4. KL


def test_reported_kl_is_above_the_noise_floor(toy: ModuleType) -> None:
    trainer = toy.policy_gradient(prompts=10, micro_batch=64)
    for _ in range(3):
        trainer.step()
    rows = torch.arange(10).repeat(40)
    prompts = trainer.train.rows.batch(rows, groups=1000 + torch.arange(400))
    measured = trainer.measure(toy.scored(trainer.collector.sample(prompts)))
    kl = rollout_metrics.sequence_kl(measured)
    exact = torch.where(measured.rollout.mask, measured.exact_kl, 0.0).sum(1)
    error = float(kl.std()) / 20
    assert float(exact.mean()) > 4 * error  # there is a KL to be seen
    assert float(kl.mean()) > -3 * error
    assert abs(float((kl - exact).mean())) < 4 * float((kl - exact).std()) / 20


def test_logged_kl_is_the_kl_in_the_objective(toy: ModuleType) -> None:
    for kl in (KLInReward(coef=0.3), AdaptiveKLInReward(coef=0.3, target=0.1, horizon=20)):
        trainer = toy.policy_gradient(
            toy.ppo(kl=kl, missing_eos_score=None), reference=toy.actor("reference")
        )
        for _ in range(3):
            coef = trainer.state.kl_coef
            metrics = trainer.step()
            charged = mean(metrics, "reward/score") - mean(metrics, "reward/total")
            assert charged == pytest.approx(coef * mean(metrics, "actor/kl_reference"), rel=1e-4)
            assert mean(metrics, "actor/kl_coef") == coef


# 5. Advantages


@pytest.mark.parametrize("stage", ["ppo", "rloo", "grpo"])
def test_scores_survive_advantage_estimation(toy: ModuleType, stage: str) -> None:
    trainer = build(toy, stage)
    rollout = trainer.collector.sample(trainer.collector.prompts(trainer.state.drawn))
    scores = trainer.collector.score(rollout, trainer.train).scores
    expected = toy.count_a([], trainer.train.texts.responses(rollout), [])
    metrics = trainer.step()
    assert scores.tolist() == expected
    assert metrics.pairs["reward/score"] == (sum(expected), 8)
    assert [row["score"] for row in trainer.samples()] == expected[:4]


# 6. Resume and checkpoint


@pytest.mark.parametrize("stage", STAGES)
def test_resume_is_bitwise_for_every_trainer(toy: ModuleType, stage: str, tmp_path: Path) -> None:
    whole, stopped, resumed = (build(toy, stage, total=5) for _ in range(3))
    for _ in range(5):
        whole.step()
    for _ in range(2):
        stopped.step()
    checkpoints.write(tmp_path, 2, stopped.save, keep=1)
    checkpoint = checkpoints.latest(tmp_path)
    assert checkpoint is not None
    resumed.load(checkpoint)
    for _ in range(3):
        resumed.step()
    assert resumed.done == whole.done == 5
    assert toy.equal(toy.parameters(*engines(resumed)), toy.parameters(*engines(whole)))


@pytest.mark.parametrize("stage", [*OFFLINE, "ppo"])
def test_resume_continues_at_the_next_row(toy: ModuleType, stage: str, tmp_path: Path) -> None:
    def rows(trainer: Any) -> Tensor:
        """What the next step trains on."""
        if stage == "supervised":
            return trainer._next_batch().tokens
        if stage == "ppo":
            return trainer.collector.prompts(trainer.state.drawn).tokens
        seen: list[Tensor] = []
        if stage != "reward_model":
            trainer.train.rows = _Noting(trainer.train.rows.batch, seen)
        else:
            trainer.train = _Noting(trainer.train.batch, seen)
        trainer.step()
        return seen[0]

    whole, resumed = build(toy, stage), build(toy, stage)
    for _ in range(3):
        whole.step()
    whole.save(tmp_path)
    resumed.load(tmp_path)
    first, expected = rows(build(toy, stage)), rows(whole)
    assert torch.equal(rows(resumed), expected)
    assert first.shape != expected.shape or not torch.equal(first, expected)


class _Noting:
    """A data set that notes which rows were asked for."""

    def __init__(self, draw: Callable[[Tensor], Any], seen: list[Tensor]) -> None:
        self.draw, self.seen = draw, seen

    def __len__(self) -> int:
        return 12

    def sizes(self, index: Tensor) -> list[int]:
        return [1] * len(index)

    def batch(self, index: Tensor) -> Any:
        self.seen.append(index)
        return self.draw(index)


def test_kl_coefficient_survives_resume(toy: ModuleType, tmp_path: Path) -> None:
    stopped, resumed = build(toy, "ppo"), build(toy, "ppo")
    first = stopped.state.kl_coef
    for _ in range(2):
        stopped.step()
    stopped.save(tmp_path)
    resumed.load(tmp_path)
    assert resumed.state.kl_coef == stopped.state.kl_coef != first
    assert mean(resumed.step(), "actor/kl_coef") == mean(stopped.step(), "actor/kl_coef")


def test_resume_restores_every_generator(toy: ModuleType, tmp_path: Path) -> None:
    stopped, resumed = build(toy, "ppo"), build(toy, "ppo")
    fresh = toy.next_rollout(resumed)
    for _ in range(2):
        stopped.step()
    stopped.save(tmp_path)
    torch.manual_seed(99)  # and nothing depends on the global stream
    torch.rand(7)
    resumed.load(tmp_path)
    first, second = (experience_of(trainer) for trainer in (stopped, resumed))
    assert torch.equal(first.rollout.tokens, second.rollout.tokens)
    orders = [[p.rollout.group for p in t.minibatches(e)] for t, e in ((stopped, first), (resumed, second))]
    assert all(torch.equal(one, other) for one, other in zip(*orders, strict=True))
    same = fresh.tokens.shape == second.rollout.tokens.shape
    assert not (same and torch.equal(fresh.tokens, second.rollout.tokens))  # the stream has moved on


def test_resume_option_is_used_or_refused(toy: ModuleType, tmp_path: Path) -> None:
    def run(total: int, *, resume: bool) -> Any:
        trainer = build(toy, "supervised", total=total)
        folder = RunFolder(tmp_path / "run")
        folder.claim("", resume=resume)
        run_loop(trainer, folder, Cadence(checkpoint_every=1), resume=resume)
        folder.close()
        return trainer

    with pytest.raises(ValueError, match=r"resume=true, but .* holds no checkpoints to continue from"):
        run(2, resume=True)
    run(2, resume=False)
    with pytest.raises(ValueError, match="already holds a run"):
        run(4, resume=False)
    run(4, resume=True)
    logged = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert logged == [1, 2, 3, 4]


RL = [
    "engine=plain",
    "actor.model.path=sft",
    "reward=function",
    "reward.function=toy_reward:score",
    "prompts.path=prompts.jsonl",
    "algorithm/kl=in_reward_adaptive",
    "algorithm.kl.horizon=100",
    "rollout.prompts=8",
    "rollout.sampling.max_new_tokens=6",
    "micro_batch_size=8",
    "rollouts=25",
    "cadence.checkpoint_every=2",
]


@pytest.fixture
def command(toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """``rlhf rl`` in this process, in a folder with a policy, prompts and a reward function."""
    actor = toy.actor("actor")
    save_model(actor, actor.state_dict(), toy.tokenizer(), tmp_path / "sft")
    prompts = [json.dumps({"prompt": text}) for text in toy.prompt_set().strings]
    (tmp_path / "prompts.jsonl").write_text("\n".join(prompts) + "\n")
    (tmp_path / "toy_reward.py").write_text(
        "def score(prompts, responses, columns):\n"
        "    return [float(response.split().count('a')) for response in responses]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)  # Hydra reads it; put back after the test
    return lambda *changes: run_command("rl", rl.COMMAND, [*RL, *changes])


def killed(folder: Path, lines: int, number: int) -> int:
    """Start the same run in a process of its own and end it after so many steps; its exit status."""
    arguments = [sys.executable, "-m", "rlhf", "rl", *RL, "name=killed"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = folder / "runs" / "killed" / "metrics.jsonl"
    with (folder / "killed.log").open("w") as output:
        process = subprocess.Popen(arguments, cwd=folder, env=environment, stdout=output, stderr=output)
        deadline = time.monotonic() + 120
        while not (log.exists() and log.read_text().count("\n") >= lines):
            assert process.poll() is None, (folder / "killed.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(number)
        return process.wait(timeout=60)


def expect_same_run(folder: Path) -> None:
    """The two runs exported the same weights, bit for bit, and logged the same steps."""
    weights = [
        (folder / "runs" / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "killed")
    ]
    assert weights[0] == weights[1]
    logged = [
        [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").open()]
        for name in ("whole", "killed")
    ]
    for one, other in zip(*logged, strict=True):
        kept = [name for name in one if not name.startswith(("time/", "throughput/", "memory/"))]
        assert {name: one[name] for name in kept} == {name: other[name] for name in kept}


def test_killed_run_restarts_from_its_last_checkpoint(command: Callable[..., int], tmp_path: Path) -> None:
    assert command("name=whole") == 0
    step = 3 + int(time.time_ns()) % 17  # any step will do
    assert killed(tmp_path, step, signal.SIGKILL) == -signal.SIGKILL, f"killed after step {step}"
    assert not (tmp_path / "runs" / "killed" / "model").exists()
    assert command("name=killed", "resume=true") == 0
    expect_same_run(tmp_path)


@pytest.mark.slow
def test_stopped_run_saves_itself_and_continues(command: Callable[..., int], tmp_path: Path) -> None:
    assert command("name=whole") == 0
    assert killed(tmp_path, 5, signal.SIGTERM) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM; continue with resume=true" in (tmp_path / "killed.log").read_text()
    assert command("name=killed", "resume=true") == 0
    expect_same_run(tmp_path)


# 7. Distributed


def test_every_sampled_row_reaches_an_update(toy: ModuleType) -> None:
    watched = WatchedLoss()
    trainer = toy.policy_gradient(
        toy.rloo(policy_loss=watched, epochs=3, minibatches=2), prompts=7, samples=2, micro_batch=3
    )
    rollout = trainer.collector.sample(trainer.collector.prompts(trainer.state.drawn))
    trainer.step()
    assert sum(len(mask) for *_, mask, _ in watched.seen) == 3 * 14
    assert sum(int(mask.sum()) for *_, mask, _ in watched.seen) == 3 * int(rollout.mask.sum())
    with pytest.raises(
        ValueError, match=r"rows per rank=14 cannot be shared out equally over .*minibatches=4"
    ):
        toy.policy_gradient(toy.rloo(minibatches=4), prompts=7, samples=2)


def test_short_responses_keep_their_row(toy: ModuleType) -> None:
    watched = WatchedLoss()
    trainer = toy.policy_gradient(toy.ppo(policy_loss=watched, epochs=1), new_tokens=1)
    for _ in range(2):
        watched.seen.clear()
        metrics = trainer.step()
        assert mean(metrics, "rollout/length") == 1.0
        assert torch.cat([mask for *_, mask, _ in watched.seen]).sum() == 8
    assert all(math.isfinite(mean(metrics, name)) for name in metrics.pairs)


@dataclass(kw_only=True, slots=True)
class BFloat16(Plain):
    """Plain torch with half-precision weights."""

    def train(self, module: nn.Module, optimizer: torch.optim.Optimizer, name: str) -> Engine:
        return TorchEngine(cast_parameters(module, torch.bfloat16), optimizer, name=name, clip=self.clip)

    def inference(self, module: nn.Module, name: str) -> Any:
        return Plain.inference(self, module, name)


def test_losses_are_computed_in_float32(toy: ModuleType) -> None:
    policy, value = WatchedLoss(), WatchedValueLoss()
    trainer = toy.policy_gradient(toy.ppo(policy_loss=policy, value_loss=value), engine=BFloat16())
    assert {p.dtype for engine in engines(trainer) for p in engine.module.parameters()} == {torch.bfloat16}
    metrics = trainer.step()
    for logprobs, old_logprobs, advantages, _, loss in policy.seen:
        assert {logprobs.dtype, old_logprobs.dtype, advantages.dtype, loss.dtype} == {torch.float32}
    for tensors in value.seen:
        assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert all(math.isfinite(mean(metrics, name)) for name in metrics.pairs)
    for stage in OFFLINE:
        losses: list[Tensor] = []
        half = getattr(toy, stage)(engine=BFloat16())
        backward = half.engine.backward
        half.engine.backward = lambda loss, backward=backward, losses=losses: (
            losses.append(loss),
            backward(loss),
        )
        half.step()
        assert {loss.dtype for loss in losses} == {torch.float32}


def test_row_without_targets_contributes_nothing(toy: ModuleType) -> None:
    rows = toy.supervised_set(5)
    empty = Encoded(tokens=[toy.BOS, 3, 4, 5, 6, 7, 8, 9], targets=[False] * 8)
    with_it = toy.supervised_set(5)
    with_it.encoded = [*rows.encoded, empty]
    found = []
    for train, size in ((rows, 5), (with_it, 6)):
        trainer = toy.supervised(train=train, batch_size=size, micro_batch_size=1, lr=1e-3)
        metrics = trainer.step()
        found.append((metrics.pairs["loss"], toy.parameters(trainer.engine)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=1e-6)


def test_rollout_row_without_a_token_contributes_nothing(toy: ModuleType) -> None:
    updated = []
    for kept in (torch.arange(8) != 3, torch.ones(8, dtype=torch.bool)):
        trainer = toy.policy_gradient(
            toy.ppo(epochs=1, minibatches=1), lr=1e-3, critic_lr=1e-3, micro_batch=1
        )
        rollout = trainer.collector.sample(trainer.collector.prompts(trainer.state.drawn))
        rollout.mask[3] = False
        experience = experience_of(trainer, rollout.rows(kept.nonzero().flatten()))
        trainer.update(experience, rollout_metrics.Metrics())
        updated.append(toy.parameters(*engines(trainer)))
    torch.testing.assert_close(updated[0], updated[1], rtol=0, atol=1e-5)


# 8. Rewards


def test_a_score_of_zero_is_a_score(toy: ModuleType) -> None:
    nothing = FunctionReward(function=lambda prompts, _, __: [0.0] * len(prompts), name="nothing")
    trainer = toy.policy_gradient(toy.ppo(missing_eos_score=-7.0), reward=nothing)
    rollout = trainer.collector.sample(trainer.collector.prompts(trainer.state.drawn))
    measured = trainer.measure(trainer.collector.score(rollout, trainer.train))
    assert 0 < int(rollout.ended.sum()) < 8
    assert torch.equal(measured.rewards.sum(1), torch.where(rollout.ended, 0.0, -7.0))
    assert mean(trainer.step(), "reward/score") == 0.0


class Scorer:
    """Has a method and can be called."""

    def method(self, prompts: list[str], responses: list[str], columns: list[dict[str, Any]]) -> list[float]:
        return [float(len(response)) for response in responses]

    __call__ = method


def weighted(
    prompts: list[str], responses: list[str], columns: list[dict[str, Any]], *, weight: float
) -> list[float]:
    return [weight * len(response) for response in responses]


@pytest.mark.parametrize(
    "function",
    [
        lambda prompts, responses, columns: [len(response) for response in responses],
        lambda prompts, responses, columns: torch.tensor([float(len(response)) for response in responses]),
        Scorer().method,
        Scorer(),
        functools.partial(weighted, weight=1.0),
    ],
    ids=["lambda", "tensor", "method", "object", "partial"],
)
def test_reward_may_be_any_callable(toy: ModuleType, function: Any) -> None:
    trainer = toy.policy_gradient(reward=FunctionReward(function=function, name="length"))
    texts = trainer.train.texts.responses(
        trainer.collector.sample(trainer.collector.prompts(trainer.state.drawn))
    )
    assert mean(trainer.step(), "reward/score") == sum(map(len, texts)) / 8


def test_reward_rises_on_the_toy_task(toy: ModuleType) -> None:
    trainer = toy.policy_gradient(
        toy.ppo(kl=KLInReward(coef=0.02), missing_eos_score=None), prompts=16, micro_batch=16, total=30
    )
    scores = [mean(trainer.step(), "reward/score") for _ in range(30)]
    start, end = sum(scores[:3]) / 3, sum(scores[-3:]) / 3
    assert end > start + 2  # of at most 6 tokens "a"
