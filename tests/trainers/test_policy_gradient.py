import copy
import math
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.advantages import GAE
from rlhf.algorithms.kl import AdaptiveKLInReward, KLInReward
from rlhf.algorithms.policy_losses import Clipped
from rlhf.distributed.engine_config import Plain
from rlhf.rewards.reward import FunctionReward
from rlhf.trainers.schedules import Linear


def mean(metrics: Any, name: str) -> float:
    total, count = metrics.pairs[name]
    return total / count


def rollout_of(trainer: Any) -> Any:
    return trainer.collector.sample(trainer.collector.prompts(trainer.state.drawn))


def experience_of(trainer: Any) -> Any:
    rollout = rollout_of(trainer)
    measured = trainer.measure(trainer.collector.score(rollout, trainer.train))
    return trainer.estimate(measured, trainer.scorer.values(rollout))


def trained(trainer: Any, steps: int) -> list[Any]:
    return [trainer.step() for _ in range(steps)]


def engines(trainer: Any) -> tuple[Any, Any]:
    return trainer.models.actor, trainer.models.critic


@dataclass(kw_only=True, slots=True)
class Watched(Clipped):
    """PPO's loss, which also notes what it was given."""

    seen: list[tuple[Tensor, ...]] = field(default_factory=list)

    def __call__(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        self.seen.append((logprobs.detach(), old_logprobs, advantages, mask))
        return Clipped.__call__(self, logprobs, old_logprobs, advantages, mask)


@dataclass(kw_only=True, slots=True)
class ByHand:
    """One response, alone and unpadded, through transformers' own forward."""

    logprobs: Tensor  # (t,)
    ref_logprobs: Tensor
    values: Tensor
    score: float
    advantages: list[float] = field(default_factory=list)

    def returns(self) -> Tensor:
        return torch.tensor(self.advantages) + self.values.detach()


def by_hand(actor: Any, reference: Any, critic: Any, tokens: tuple[list[int], list[int]]) -> ByHand:
    prompt, response = tokens
    text, first, last = torch.tensor([prompt + response]), len(prompt) - 1, len(prompt + response) - 1
    picked = torch.tensor(response)[:, None]
    policies = [
        (model.model(text).logits[0, first:last] / 0.9).log_softmax(-1).gather(1, picked)[:, 0]
        for model in (actor, reference)
    ]
    states = critic.model.base_model(text).last_hidden_state[0, first:last]
    score = float(response.count(3)) if response[-1] == 1 else -1.0  # 3 is "a", 1 the end token
    row = ByHand(
        logprobs=policies[0], ref_logprobs=policies[1], values=states @ critic.head.weight[0], score=score
    )
    row.advantages = gae(row)
    return row


def gae(row: ByHand, beta: float = 0.1, lam: float = 0.95) -> list[float]:
    """Backwards, one number at a time; nothing follows the last token."""
    charge = (row.logprobs - row.ref_logprobs).tolist()
    rewards = [-beta * cost for cost in charge]
    rewards[-1] += row.score
    values = [*row.values.tolist(), 0.0]
    found, following = [], 0.0
    for t in reversed(range(len(rewards))):
        following = rewards[t] + values[t + 1] - values[t] + lam * following
        found.append(following)
    return found[::-1]


def adam_step(start: Any, after: Any, lr: float) -> None:
    """Adam's first step from ``start``, whose gradients are there, leads to ``after``."""
    for (name, old), new in zip(start.named_parameters(), after.parameters(), strict=True):
        gradient = torch.zeros_like(old) if old.grad is None else old.grad
        moved = old - lr * gradient / (gradient.abs() + 1e-5)
        # A gradient off by 1e-7 moves g / (|g| + 1e-5) by up to 1e-2.
        torch.testing.assert_close(
            new, moved, rtol=0, atol=lr * 1e-2, msg=lambda text, name=name: name + text
        )


@pytest.mark.parametrize("source", ["LLAMA", "GPT2"])
def test_a_step_of_ppo_is_the_one_written_out_by_hand(toy: ModuleType, source: str) -> None:
    model = getattr(toy, source)
    trainer = toy.policy_gradient(
        toy.ppo(epochs=1, minibatches=1),
        engine=Plain(clip=None),
        source=model,
        reference=toy.actor("reference", model),
        lr=1e-3,
        critic_lr=1e-3,
    )
    rollout = rollout_of(trainer)
    actor, critic = (copy.deepcopy(engine.module) for engine in engines(trainer))
    rows = [
        by_hand(
            actor, trainer.models.reference.module, critic, (prompt[real].tolist(), response[kept].tolist())
        )
        for prompt, real, response, kept in zip(
            rollout.tokens[:, : rollout.prompt_mask.shape[1]],
            rollout.prompt_mask,
            rollout.responses,
            rollout.mask,
            strict=True,
        )
    ]
    assert {row.score for row in rows} > {-1.0}  # some were cut off, some ended
    raw = torch.tensor([advantage for row in rows for advantage in row.advantages])
    white = (raw - raw.mean()) / raw.std(correction=0)
    (-(white * torch.cat([row.logprobs for row in rows])).mean()).backward()
    errors = torch.cat([row.values - row.returns() for row in rows])
    (0.5 * errors.square().mean()).backward()
    trainer.step()
    adam_step(actor, trainer.models.actor.module, 1e-3)
    adam_step(critic, trainer.models.critic.module, 1e-3)


def test_old_logprobs_are_the_samplers(toy: ModuleType) -> None:
    trainer = toy.policy_gradient()
    trainer.step()
    experience = experience_of(trainer)
    torch.testing.assert_close(
        experience.old_logprobs, experience.rollout.sampler_logprobs, rtol=0, atol=1e-5
    )
    assert (experience.old_logprobs[experience.rollout.mask] < 0).all()
    metrics = trainer.step()
    assert metrics.maxima["ledger/logprob_gap_max"] < 1e-5
    assert mean(metrics, "ledger/logprob_gap_mean") <= metrics.maxima["ledger/logprob_gap_max"]


def test_first_update_is_on_policy(toy: ModuleType) -> None:
    watched = Watched()
    trainer = toy.policy_gradient(toy.ppo(policy_loss=watched, epochs=1, minibatches=1))
    metrics = trainer.step()
    for logprobs, old_logprobs, _, mask in watched.seen:
        ratio = (logprobs - old_logprobs).exp()
        assert (ratio[mask] - 1).abs().max() < 1e-5
    assert mean(metrics, "actor/clip_fraction") == 0.0
    assert mean(metrics, "actor/kl_old") == pytest.approx(0.0, abs=1e-10)
    # One minibatch spans the rollout, so the loss is minus the mean of whitened advantages.
    assert mean(metrics, "loss") == pytest.approx(0.0, abs=1e-6)


def test_kl_to_a_reference_that_equals_the_actor_is_exactly_0(toy: ModuleType) -> None:
    metrics = toy.policy_gradient().step()
    for name in ("", "_per_token", "_k3", "_exact"):
        assert mean(metrics, f"actor/kl_reference{name}") == 0.0


def test_exact_kl_is_summed_over_the_vocabulary_at_the_sampling_temperature(toy: ModuleType) -> None:
    trainer = toy.policy_gradient(reference=toy.actor("reference"), temperature=0.7)
    rollout = rollout_of(trainer)
    measured = trainer.measure(toy.scored(rollout))
    row, t = 2, 1
    seen = rollout.tokens[row][rollout.attention_mask[row]][: int(rollout.prompt_mask[row].sum()) + t]
    policies = [
        (model.model(seen[None]).logits[0, -1] / 0.7).log_softmax(-1)
        for model in (trainer.models.actor.module, trainer.models.reference.module)
    ]
    expected = (policies[0].exp() * (policies[0] - policies[1])).sum()
    torch.testing.assert_close(measured.exact_kl[row, t], expected.detach(), rtol=1e-4, atol=1e-6)
    entropy = -(policies[0].exp() * policies[0]).sum()
    torch.testing.assert_close(measured.entropies[row, t], entropy.detach(), rtol=1e-5, atol=1e-6)


def test_exact_kl_that_is_not_measured_is_not_reported_as_0(toy: ModuleType) -> None:
    first, second = (toy.policy_gradient(exact_kl=wanted, total=1) for wanted in (True, False))
    with_it, without = first.step(), second.step()
    assert "actor/kl_reference_exact" not in without.pairs
    assert with_it.pairs.keys() - without.pairs.keys() == {"actor/kl_reference_exact"}
    torch.testing.assert_close(
        toy.parameters(*engines(first)), toy.parameters(*engines(second)), rtol=0, atol=1e-6
    )


def test_token_rewards_sum_to_the_score_minus_the_kl(toy: ModuleType) -> None:
    trainer = toy.policy_gradient(reference=toy.actor("reference"))
    rollout = rollout_of(trainer)
    scores = torch.arange(8.0)
    measured = trainer.measure(toy.scored(rollout, scores))
    k1 = torch.where(rollout.mask, measured.old_logprobs - measured.ref_logprobs, 0.0).sum(1)
    expected = torch.where(rollout.ended, scores, -1.0) - 0.1 * k1
    assert 0 < int(rollout.ended.sum()) < 8
    torch.testing.assert_close(measured.rewards.sum(1), expected)
    assert not measured.rewards.requires_grad
    assert torch.equal(measured.scores, scores)


def test_returns_minus_raw_advantages_are_the_old_values(toy: ModuleType) -> None:
    raw, white = (experience_of(toy.policy_gradient(toy.ppo(advantage=GAE(whiten=w)))) for w in (False, True))
    torch.testing.assert_close(raw.returns - raw.advantages, raw.old_values)
    assert torch.equal(raw.returns, white.returns)
    advantages = white.advantages[white.rollout.mask].double()
    assert float(advantages.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(advantages.var(correction=0)) == pytest.approx(1.0, abs=1e-5)


def test_every_row_is_used_once_an_epoch_in_a_fresh_order(toy: ModuleType) -> None:
    trainer = toy.policy_gradient(toy.ppo(epochs=3, minibatches=4))
    minibatches = [part.rollout.group.tolist() for part in trainer.minibatches(experience_of(trainer))]
    assert [len(part) for part in minibatches] == [2] * 12
    epochs = torch.tensor(minibatches).view(3, 8)
    assert torch.equal(epochs.sort(1).values, torch.arange(8).expand(3, 8))
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3


def test_optimiser_steps_are_epochs_times_minibatches(toy: ModuleType) -> None:
    trainer = toy.policy_gradient(toy.ppo(epochs=3, minibatches=4))
    metrics = trainer.step()
    assert metrics.pairs["actor/grad_norm"][1] == metrics.pairs["critic/grad_norm"][1] == 12
    assert trainer.state.actor_steps == 12


def test_advantages_are_whitened_over_the_rollout_and_not_the_minibatch(toy: ModuleType) -> None:
    watched = Watched()
    trainer = toy.policy_gradient(toy.ppo(policy_loss=watched, epochs=1, minibatches=2))
    expected = experience_of(trainer)
    trainer.step()
    used = torch.cat([advantages[mask] for _, _, advantages, mask in watched.seen])
    assert torch.equal(used.sort().values, expected.advantages[expected.rollout.mask].sort().values)


@pytest.mark.parametrize("micro", [1, 2, 8])
def test_micro_batches_do_not_change_the_update(toy: ModuleType, micro: int) -> None:
    updated, metrics = [], []
    for size in (3, micro):  # of 4 rows a minibatch: three and one
        trainer = toy.policy_gradient(
            toy.ppo(epochs=1), reference=toy.actor("reference"), micro_batch=size, lr=1e-3, critic_lr=1e-3
        )
        metrics.append(trainer.step())
        updated.append(toy.parameters(*engines(trainer)))
    # A gradient off by 1e-7 moves Adam's first step by up to 1e-2 of the learning rate.
    torch.testing.assert_close(updated[0], updated[1], rtol=0, atol=1e-5)
    for name in metrics[0].pairs:
        if not name.startswith(("time/", "throughput/", "ledger/")):
            same = mean(metrics[1], name)
            assert mean(metrics[0], name) == pytest.approx(same, rel=1e-4, abs=1e-6), name


def test_the_critics_learning_rate_never_reaches_the_actor(toy: ModuleType) -> None:
    first, second = (toy.policy_gradient(critic_lr=lr) for lr in (1e-2, 1e-4))
    first.step(), second.step()
    assert toy.equal(toy.parameters(first.models.actor), toy.parameters(second.models.actor))
    assert not toy.equal(toy.parameters(first.models.critic), toy.parameters(second.models.critic))


def test_the_reference_never_moves(toy: ModuleType) -> None:
    trainer = toy.policy_gradient()
    before = copy.deepcopy(trainer.models.reference.module.state_dict())
    trained(trainer, 2)
    assert toy.equal(trainer.models.reference.module.state_dict(), before)


def test_learning_rates_follow_the_schedule_once_a_rollout(toy: ModuleType) -> None:
    trainer = toy.policy_gradient(schedule=Linear(), total=4, lr=0.01, critic_lr=0.02)
    metrics = trained(trainer, 4)
    assert [mean(one, "actor/lr") for one in metrics] == pytest.approx([0.01, 0.0075, 0.005, 0.0025])
    assert [mean(one, "critic/lr") for one in metrics] == pytest.approx([0.02, 0.015, 0.01, 0.005])


def test_kl_coefficient_moves_after_the_updates(toy: ModuleType) -> None:
    adaptive = AdaptiveKLInReward(coef=0.5, target=100.0, horizon=80)
    trainer = toy.policy_gradient(
        toy.ppo(kl=adaptive, missing_eos_score=None), reference=toy.actor("reference")
    )
    coefficients = []
    for metrics in trained(trainer, 3):
        coefficients.append(mean(metrics, "actor/kl_coef"))
        charged = mean(metrics, "reward/score") - mean(metrics, "reward/total")
        assert charged == pytest.approx(coefficients[-1] * mean(metrics, "actor/kl_reference"), rel=1e-4)
    # The KL is far below the target: 20 % less for each 80 responses, of which a rollout has 8.
    assert coefficients == pytest.approx([0.5, 0.5 * 0.98, 0.5 * 0.98**2])
    assert trainer.state.kl_coef == pytest.approx(0.5 * 0.98**3)


def test_prompts_are_drawn_in_order_and_groups_numbered_on(toy: ModuleType) -> None:
    trainer = toy.policy_gradient(toy.rloo(), prompts=5, samples=2)
    drawn = []
    for rollout in range(2):  # of the 10 prompts
        batch = trainer.collector.prompts(trainer.state.drawn)
        assert torch.equal(batch.group, torch.arange(5 * rollout, 5 * rollout + 5).repeat_interleave(2))
        assert torch.equal(batch.index[::2], batch.index[1::2])
        drawn += batch.index[::2].tolist()
        trainer.step()
    assert sorted(drawn) == list(range(10))


def test_responses_do_not_depend_on_the_batch(toy: ModuleType) -> None:
    trainer = toy.policy_gradient(toy.rloo(), samples=2)
    prompts = trainer.collector.prompts(trainer.state.drawn)
    whole = trainer.collector.sample(prompts)
    pair = trainer.collector.sample(prompts.rows(torch.tensor([6, 7])))
    for few, many in zip(range(2), (6, 7), strict=True):
        assert (
            pair.responses[few][pair.mask[few]].tolist() == whole.responses[many][whole.mask[many]].tolist()
        )
    assert not torch.equal(whole.responses[6], whole.responses[7])  # siblings differ


def test_the_same_seed_gives_the_same_responses_and_another_does_not(toy: ModuleType) -> None:
    first, second, third = (rollout_of(toy.policy_gradient(seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first.tokens, second.tokens)
    assert first.tokens.shape != third.tokens.shape or not torch.equal(first.tokens, third.tokens)


def test_nothing_touches_the_global_random_stream(toy: ModuleType) -> None:
    trainer = toy.policy_gradient(test=toy.prompt_set(4, "held out"))
    before = torch.get_rng_state()
    trainer.step()
    trainer.evaluate()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["ppo", "rloo", "grpo"])
def test_every_algorithm_steps_and_evaluates(toy: ModuleType, name: str) -> None:
    algorithm = getattr(toy, name)()
    trainer = toy.policy_gradient(algorithm, samples=2, test=toy.prompt_set(4, "held out"))
    assert (trainer.models.critic is None) == (name != "ppo")
    before = toy.parameters(*engines(trainer))
    metrics = trainer.step()
    metrics.merge(trainer.evaluate())
    after = toy.parameters(*engines(trainer))
    assert all(not torch.equal(before[key], after[key]) for key in before)
    assert all(math.isfinite(mean(metrics, key)) for key in metrics.pairs)
    assert ("critic/loss" in metrics.pairs) == (name == "ppo")
    assert metrics.pairs["eval/reward/score"][1] == 4  # one response to each


def test_evaluation_changes_nothing(toy: ModuleType) -> None:
    first, second = (toy.policy_gradient(test=toy.prompt_set(4, "held out")) for _ in range(2))
    first.step(), second.step()
    once, twice = first.evaluate(), first.evaluate()
    assert once.pairs == twice.pairs
    assert first.state == second.state
    assert first.samples() == second.samples()
    trained(first, 2), trained(second, 2)
    assert toy.equal(toy.parameters(*engines(first)), toy.parameters(*engines(second)))


def test_evaluation_samples_the_held_out_prompts_once_each(toy: ModuleType) -> None:
    seen: list[str] = []

    def note(prompts: list[str], responses: list[str], columns: list[dict[str, Any]]) -> list[float]:
        seen.extend(prompts)
        return [float(len(prompt)) for prompt in prompts]

    held_out = toy.prompt_set(4, "held out")
    trainer = toy.policy_gradient(reward=FunctionReward(function=note, name="note"), test=held_out)
    metrics = trainer.evaluate()
    assert seen == held_out.strings
    assert mean(metrics, "eval/reward/score") == sum(map(len, held_out.strings)) / 4


def test_without_held_out_prompts_nothing_is_evaluated(toy: ModuleType) -> None:
    assert toy.policy_gradient().evaluate().pairs == {}


@pytest.mark.parametrize("name", ["ppo", "rloo", "grpo"])
def test_continuing_is_bitwise_the_same_as_not_stopping(toy: ModuleType, name: str, tmp_path: Path) -> None:
    def build() -> Any:
        changes = {"kl": AdaptiveKLInReward(target=0.1, horizon=50)} if name == "ppo" else {}
        return toy.policy_gradient(getattr(toy, name)(**changes), samples=2, total=5)

    whole, stopped, resumed = build(), build(), build()
    expected = trained(whole, 5)
    found = trained(stopped, 2)
    stopped.save(tmp_path)
    resumed.load(tmp_path)
    assert resumed.state == stopped.state
    assert resumed.done == 2
    found += trained(resumed, 3)
    assert resumed.state == whole.state
    assert resumed.samples() == whole.samples()
    assert toy.equal(toy.parameters(*engines(resumed)), toy.parameters(*engines(whole)))
    for one, other in zip(expected, found, strict=True):
        kept = [key for key in one.pairs if not key.startswith(("time/", "throughput/"))]
        assert [one.pairs[key] for key in kept] == [other.pairs[key] for key in kept]


def test_times_sum_to_the_step(toy: ModuleType) -> None:
    metrics = toy.policy_gradient().step()
    names = {name for name in metrics.pairs if name.startswith("time/")} - {"time/step"}
    assert names == {
        f"time/{phase}" for phase in ("sample", "score", "logprobs", "advantages", "update", "other")
    }
    assert sum(mean(metrics, name) for name in names) == pytest.approx(mean(metrics, "time/step"))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_refused_with_its_row(toy: ModuleType, bad: float) -> None:
    def broken(prompts: list[str], responses: list[str], columns: list[dict[str, Any]]) -> list[float]:
        return [bad if row == 3 else 0.0 for row in range(len(prompts))]

    trainer = toy.policy_gradient(reward=FunctionReward(function=broken, name="broken"))
    prompt = trainer.train.texts.prompts(rollout_of(trainer))[3]
    with pytest.raises(
        FloatingPointError, match=f"rollout 1: broken gave {bad} to response 3, prompt '{prompt}'"
    ):
        trainer.step()
    assert trainer.done == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"algorithm": {"minibatches": 3}},
            "rows per rank=8 cannot be shared out equally over algorithm.minibatc",
        ),
        ({"prompts": 0}, "rollout.prompts=0 cannot be shared out equally over ranks=1"),
        ({"samples": 0}, "rollout.prompts × rollout.samples=0 cannot be shared out equally"),
        ({"micro_batch": 0}, "micro_batch_size=0 cannot be shared out equally over ranks=1"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(toy: ModuleType, changes: dict[str, Any], message: str) -> None:
    algorithm = toy.ppo(**changes.pop("algorithm", {}))
    with pytest.raises(ValueError, match=message):
        toy.policy_gradient(algorithm, **changes)


def test_samples_show_the_first_rows_with_score_and_kl(toy: ModuleType) -> None:
    trainer = toy.policy_gradient(toy.ppo(kl=KLInReward(coef=0.1)), reference=toy.actor("reference"))
    rollout = rollout_of(trainer)
    texts = trainer.train.texts
    scores = trainer.collector.score(rollout, trainer.train).scores
    trainer.step()
    shown = trainer.samples()
    assert [row["prompt"] for row in shown] == texts.prompts(rollout)[:4]
    assert [row["response"] for row in shown] == texts.responses(rollout)[:4]
    assert [row["score"] for row in shown] == scores[:4].tolist()
    assert all(row["kl"] != 0 for row in shown)


def test_headline_shows_score_kl_and_length(toy: ModuleType) -> None:
    numbers = {"reward/score": 1.234, "actor/kl_reference": 0.5, "rollout/length": 12.34}
    assert toy.policy_gradient().headline(numbers) == "score 1.23, kl 0.50, length 12.3"
