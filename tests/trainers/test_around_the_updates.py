"""What surrounds the updates of a rollout: schedules, bonuses, texts of pretraining, averages, references."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.advantages import MovingAverage
from rlhf.algorithms.corrections import Truncated
from rlhf.algorithms.kl import ExactKLInLoss, KLInReward, NoKL
from rlhf.algorithms.policy_gradient import PolicyGradient
from rlhf.algorithms.policy_losses import AdaptiveKLPenalised, Reinforce
from rlhf.distributed.engine_config import Plain
from rlhf.metrics import Metrics
from rlhf.rewards.mixture import MixtureReward
from rlhf.rewards.reward import FunctionReward


def mean(metrics: Any, name: str) -> float:
    total, count = metrics.pairs[name]
    return total / count


def engines(trainer: Any) -> tuple[Any, ...]:
    return trainer.models.actor, trainer.models.critic


def experience_of(toy: ModuleType, trainer: Any) -> Any:
    scored = trainer.collector.score(toy.next_rollout(trainer), trainer.train)
    return trainer.estimate(trainer.measure(scored), trainer.scorer.values(scored.rollout))


def gradients(trainer: Any, minibatch: Any) -> dict[str, Tensor]:
    """Of the actor, summed by its engine just before the step."""
    found: dict[str, Tensor] = {}
    step = trainer.models.actor.step

    def note() -> float:
        found.update(
            {
                name: parameter.grad.clone()
                for name, parameter in trainer.models.actor.module.named_parameters()
                if parameter.grad is not None
            }
        )
        return step()

    trainer.models.actor.step = note
    trainer.update(minibatch, Metrics())
    return found


def by_hand(trainer: Any, loss: Any) -> dict[str, Tensor]:
    """The actor's gradient of a scalar function of it."""
    module = trainer.models.actor.module
    module.zero_grad()
    loss(module).backward()
    found = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    module.zero_grad(set_to_none=True)
    return found


def close(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-6)


UNCLIPPED = Plain(clip=None)


# PPO-ptx


def test_texts_add_their_gradient_to_the_one_step(toy: ModuleType) -> None:
    """∇L_policy + γ·∇(mean of −log π over all target tokens), numerics D45."""
    texts, gamma = toy.supervised_set(), 0.7
    plain, mixed = (
        toy.policy_gradient(toy.ppo(ptx_coef=coef), engine=UNCLIPPED, pretraining=rows)
        for coef, rows in ((0.0, None), (gamma, texts))
    )
    minibatch = next(iter(plain.minibatches(experience_of(toy, plain))))
    batch = texts.batch(mixed.updater.pretraining._index(0))

    def likelihood(module: Any) -> Tensor:
        logits = module.logits(batch.tokens, batch.attention_mask, 1).log_softmax(2)
        picked = logits.gather(2, batch.tokens[:, 1:].masked_fill(~batch.mask[:, 1:], 0)[..., None])[..., 0]
        return -picked[batch.mask[:, 1:]].mean()

    expected = by_hand(mixed, likelihood)
    alone, together = gradients(plain, minibatch), gradients(mixed, minibatch)
    assert max(float(value.abs().max()) for value in expected.values()) > 0.01
    close(together, {name: alone[name] + gamma * expected[name] for name in alone})
    assert mixed.state.actor_steps == 1


def test_a_coefficient_of_zero_is_ppo_bit_for_bit(toy: ModuleType) -> None:
    trained = []
    for rows in (None, toy.supervised_set()):
        trainer = toy.policy_gradient(toy.ppo(), pretraining=rows)
        for _ in range(2):
            trainer.step()
        trained.append(toy.parameters(*engines(trainer)))
    assert toy.equal(*trained)


def test_every_step_takes_the_next_texts_and_counts_their_tokens(toy: ModuleType) -> None:
    texts = toy.supervised_set()
    trainer = toy.policy_gradient(toy.ppo(ptx_coef=0.5), pretraining=texts)  # 2 epochs of 2 minibatches
    metrics = trainer.step()
    index = [trainer.updater.pretraining._index(step) for step in range(4)]
    assert sorted(torch.cat(index[:3]).tolist()) == list(range(12))  # an epoch of 12 rows
    expected = sum(int(texts.batch(rows).mask.sum()) for rows in index)
    assert metrics.pairs["actor/ptx_loss"][1] == expected


def test_texts_keep_their_likelihood_up(toy: ModuleType) -> None:
    """Under a reward that pays for "a" alone, the texts stay likelier with a coefficient than without."""
    texts, losses = toy.supervised_set(), []
    for coef in (0.0, 1.0):
        trainer = toy.policy_gradient(toy.ppo(ptx_coef=coef, kl=NoKL()), pretraining=texts, total=20, lr=3e-2)
        for _ in range(15):
            trainer.step()
        batch = texts.batch(torch.arange(12))
        logprobs = trainer.models.actor.module(batch.tokens, batch.attention_mask, 1).logprobs
        losses.append(float(-logprobs[batch.mask[:, 1:]].detach().mean()))
    assert losses[1] < losses[0] - 0.5


def test_a_text_that_is_not_finite_is_named(toy: ModuleType) -> None:
    trainer = toy.policy_gradient(toy.ppo(ptx_coef=0.5), pretraining=toy.supervised_set())
    backward = trainer.updater.pretraining.backward

    def poisoned(*args: Any) -> None:
        weight = trainer.models.actor.module.model.get_input_embeddings().weight
        with torch.no_grad():
            weight[:] = math.nan
        backward(*args)

    trainer.updater.pretraining.backward = poisoned
    with pytest.raises(
        FloatingPointError, match=r"the pretraining loss of token \d of pretraining row \d+ is nan"
    ):
        trainer.step()


# Average of the weights


def test_the_average_is_its_closed_form(toy: ModuleType) -> None:
    """θ̄ₖ = dᵏ·θ₀ + (1 − d)·Σ dᵏ⁻ⁱ·θᵢ, numerics D46."""
    trainer = toy.policy_gradient(ema_decay=0.75)
    weights = [trainer.models.actor.module.state_dict()]
    weights = [{name: tensor.clone() for name, tensor in weights[0].items()}]
    for _ in range(3):
        trainer.step()
        weights.append({name: t.clone() for name, t in trainer.models.actor.module.state_dict().items()})
    for name, found in trainer.models.average.module.state_dict().items():
        expected = 0.75**3 * weights[0][name]
        expected = expected + 0.25 * sum(0.75 ** (3 - i) * weights[i][name] for i in (1, 2, 3))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_training_does_not_see_the_average(toy: ModuleType) -> None:
    trained = []
    for decay in (None, 0.9):
        trainer = toy.policy_gradient(ema_decay=decay, test=toy.prompt_set(4, "held out"))
        for _ in range(3):
            trainer.step()
            trainer.evaluate()
        trained.append(toy.parameters(*engines(trainer)))
    assert toy.equal(*trained)


def test_the_average_is_what_is_evaluated(toy: ModuleType) -> None:
    held_out = toy.prompt_set(6, "held out")
    trainer = toy.policy_gradient(ema_decay=0.5, test=held_out, reference=toy.actor("reference"))
    trainer.step()
    found = trainer.evaluate()
    with torch.no_grad():  # the actor's own weights no longer matter to it
        for parameter in trainer.models.actor.module.parameters():
            parameter.zero_()
    again = trainer.evaluate()
    assert found.pairs == again.pairs
    assert found.pairs["eval/ledger/logprob_gap_mean"][0] < 1e-3


def test_average_and_every_number_survive_a_checkpoint(toy: ModuleType, tmp_path: Path) -> None:
    def build() -> Any:
        return toy.policy_gradient(
            toy.rloo(
                advantage=MovingAverage(),
                policy_loss=AdaptiveKLPenalised(target=1e-4),
                epochs=2,
                ptx_coef=0.1,
            ),
            ema_decay=0.5,
            pretraining=toy.supervised_set(),
        )

    whole, resumed = build(), build()
    for _ in range(2):
        whole.step()
    whole.save(tmp_path)
    resumed.load(tmp_path)
    assert resumed.state == whole.state
    assert whole.state.baseline != 0
    assert whole.state.penalty != 1
    for trainer in (whole, resumed):
        trainer.step()
    assert toy.equal(toy.parameters(resumed.models.actor), toy.parameters(whole.models.actor))
    averages = [trainer.models.average.module.state_dict() for trainer in (whole, resumed)]
    assert toy.equal(*averages)


def test_a_checkpoint_without_an_average_is_refused(toy: ModuleType, tmp_path: Path) -> None:
    toy.policy_gradient().save(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"average.pt: the checkpoint holds no average of the weights"
    ):
        toy.policy_gradient(ema_decay=0.5).load(tmp_path)


# Schedules


def test_the_critic_alone_learns_while_it_warms_up(toy: ModuleType) -> None:
    trainer = toy.policy_gradient(toy.ppo(critic_warmup=2))
    actor, critic = (toy.parameters(engine) for engine in engines(trainer))
    for _ in range(2):
        metrics = trainer.step()
        assert toy.equal(toy.parameters(trainer.models.actor), actor)
        assert not toy.equal(toy.parameters(trainer.models.critic), critic)
        assert "actor/grad_norm" not in metrics.pairs
        assert "loss" not in metrics.pairs
        assert mean(metrics, "critic/loss") > 0
    assert trainer.state.actor_steps == 0
    trainer.step()
    assert not toy.equal(toy.parameters(trainer.models.actor), actor)


def test_updates_end_once_the_policy_has_moved_far_enough(toy: ModuleType) -> None:
    steps = {}
    for bound in (None, 1e-9, 1e9):
        trainer = toy.policy_gradient(toy.ppo(epochs=3, max_old_kl=bound), lr=0.05)
        trainer.step()
        steps[bound] = trainer.state.actor_steps
    assert steps == {None: 6, 1e-9: 2, 1e9: 6}  # the first update measures 0, or rounding


def test_the_penalty_is_steered_by_the_last_update(toy: ModuleType) -> None:
    trainer = toy.policy_gradient(
        toy.ppo(policy_loss=AdaptiveKLPenalised(coef=4.0, target=1e9), epochs=2), lr=0.05
    )
    assert mean(trainer.step(), "actor/penalty_coef") == 4.0
    assert mean(trainer.step(), "actor/penalty_coef") == 2.0
    trainer = toy.policy_gradient(
        toy.ppo(policy_loss=AdaptiveKLPenalised(coef=4.0, target=1e-9), epochs=2), lr=0.05
    )
    trainer.step()
    assert trainer.state.penalty == 8.0


def test_no_other_loss_has_a_penalty(toy: ModuleType) -> None:
    assert "actor/penalty_coef" not in toy.policy_gradient().step().pairs


def test_the_baseline_is_the_mean_return_of_past_rollouts(toy: ModuleType) -> None:
    trainer = toy.policy_gradient(toy.rloo(advantage=MovingAverage(decay=0.5)))
    first = mean(trainer.step(), "reward/total")
    assert trainer.state.baseline == pytest.approx(first)  # owes nothing to the 0
    scored = trainer.collector.score(toy.next_rollout(trainer), trainer.train)
    measured = trainer.measure(scored)
    advantages = trainer.estimate(measured, None).advantages
    torch.testing.assert_close(advantages[:, 0], measured.rewards.sum(1) - first)
    second = mean(trainer.step(), "reward/total")
    assert trainer.state.baseline == pytest.approx((first + second) / 2)


# The loss


def test_entropy_is_paid_for_with_its_gradient(toy: ModuleType) -> None:
    choices: dict[str, Any] = {"kl": NoKL(), "minibatches": 1, "value_loss": None}
    plain, paid = (
        toy.policy_gradient(toy.rloo(**choices, entropy_coef=coef), engine=UNCLIPPED, samples=2)
        for coef in (0.0, 0.3)
    )
    experience = experience_of(toy, plain)
    rollout, weights = experience.rollout, plain.algorithm.weights(experience, lambda part: part)

    def entropy(module: Any) -> Tensor:
        logits = module.logits(rollout.tokens, rollout.attention_mask, rollout.prompt_mask.shape[1]) / 0.9
        logprobs = logits.log_softmax(2)
        return -(weights * -(logprobs.exp() * logprobs).sum(2)).sum()

    expected = by_hand(plain, entropy)
    alone, together = gradients(plain, experience), gradients(paid, experience)
    close(together, {name: alone[name] + 0.3 * expected[name] for name in alone})


def test_exact_kl_in_the_loss_has_the_gradient_of_the_whole_vocabulary(toy: ModuleType) -> None:
    choices: dict[str, Any] = {"minibatches": 1, "value_loss": None}
    plain, held = (
        toy.policy_gradient(
            toy.rloo(**choices, kl=kl),
            engine=UNCLIPPED,
            samples=2,
            reference=toy.actor("reference"),
            exact_kl=False,
        )
        for kl in (NoKL(), ExactKLInLoss(coef=0.3))
    )
    experience = experience_of(toy, plain)
    rollout, weights = experience.rollout, plain.algorithm.weights(experience, lambda part: part)
    inputs = (rollout.tokens, rollout.attention_mask, rollout.prompt_mask.shape[1])
    ref = (plain.models.reference.module.logits(*inputs) / 0.9).log_softmax(2)

    def divergence(module: Any) -> Tensor:
        logprobs = (module.logits(*inputs) / 0.9).log_softmax(2)
        return (weights * (logprobs.exp() * (logprobs - ref)).sum(2)).sum()

    expected = by_hand(plain, divergence)
    assert max(float(value.abs().max()) for value in expected.values()) > 1e-3
    alone, together = gradients(plain, experience), gradients(held, experience)
    close(together, {name: alone[name] + 0.3 * expected[name] for name in alone})


def test_a_sampler_that_is_not_the_scorer_is_corrected_for(toy: ModuleType) -> None:
    trainer = toy.policy_gradient(
        toy.rloo(correction=Truncated(cap=2.0), kl=NoKL(), policy_loss=Reinforce()), samples=2
    )
    metrics = trainer.step()
    assert mean(metrics, "actor/correction_weight") == pytest.approx(1.0, abs=1e-5)  # here it is
    sample = trainer.collector.sample

    def other(*args: Any, **options: Any) -> Any:
        rollout = sample(*args, **options)
        rollout.sampler_logprobs = torch.where(rollout.mask, rollout.sampler_logprobs - 0.5, 0.0)
        return rollout

    trainer.collector.sample = other
    weight = mean(trainer.step(), "actor/correction_weight")
    assert weight == pytest.approx(math.exp(0.5), rel=1e-4)


def test_a_minibatch_without_a_token_in_the_loss_is_passed_over_and_said_so(
    toy: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = toy.policy_gradient(toy.ppo(overlong_filter=True, epochs=1, minibatches=1), new_tokens=1)
    rollout = toy.next_rollout(trainer)
    assert not rollout.ended.all()
    trainer.collector.sampler.end_ids = [99]  # nothing ends
    before = toy.parameters(*engines(trainer))
    with caplog.at_level(logging.WARNING):
        metrics = trainer.step()
    assert "rollout 1: no response of a minibatch is left in the loss; it was passed over" in caplog.text
    assert toy.equal(toy.parameters(*engines(trainer)), before)
    assert mean(metrics, "rollout/truncated_fraction") == 1
    assert trainer.done == 1


def test_filtered_responses_have_no_part_in_the_update(toy: ModuleType) -> None:
    """The gradient is that of the responses that ended, as if the others had never been drawn."""
    choices: dict[str, Any] = {"minibatches": 1, "kl": NoKL(), "value_loss": None}
    trainer = toy.policy_gradient(toy.rloo(**choices, overlong_filter=True), engine=UNCLIPPED, samples=2)
    experience = experience_of(toy, trainer)
    kept = experience.rows(experience.rollout.ended)
    assert 0 < len(kept) < len(experience)
    other = toy.policy_gradient(toy.rloo(**choices), engine=UNCLIPPED, samples=2)
    close(gradients(trainer, experience), gradients(other, kept))


# Without a reference


def test_without_a_reference_the_policy_learns_the_same_and_no_kl_is_reported(toy: ModuleType) -> None:
    trained = []
    for measured in (True, False):
        trainer = toy.policy_gradient(toy.ppo(kl=NoKL()), measure_kl=measured, exact_kl=measured)
        metrics = [trainer.step() for _ in range(2)][-1]
        trained.append(toy.parameters(*engines(trainer)))
    assert toy.equal(*trained)
    assert not any("reference" in name for name in metrics.pairs)
    assert "kl" not in trainer.samples()[0]
    assert trainer.headline({"reward/score": 1.0, "rollout/length": 2.0}) == "score 1.00, length 2.0"


def test_a_kl_to_nothing_is_refused(toy: ModuleType) -> None:
    trainer = toy.policy_gradient(toy.ppo(kl=KLInReward()), measure_kl=False)
    with pytest.raises(ValueError, match="KLInReward needs the log-probs of a reference, got None"):
        trainer.step()


def test_parts_of_a_mixture_are_logged_of_the_rollout_that_is_learnt_from(toy: ModuleType) -> None:
    parts = {
        "a": FunctionReward(function=toy.count_a, name="count_a"),
        "words": FunctionReward(function=lambda p, r, c: [float(len(x.split())) for x in r], name="words"),
    }
    reward = MixtureReward(parts=parts, weights={"a": 2.0, "words": -0.5})
    metrics = toy.policy_gradient(reward=reward).step()
    total = 2 * mean(metrics, "reward/a") - 0.5 * mean(metrics, "reward/words")
    assert mean(metrics, "reward/score") == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "changes", [{}, {"kl": KLInReward(coef=0.1), "entropy_coef": 0.05}], ids=["ppo", "all"]
)
def test_one_sweep_moves_the_actor_as_two_passes_do(
    toy: ModuleType, monkeypatch: pytest.MonkeyPatch, packed: bool, changes: dict[str, Any]
) -> None:
    found = []
    for one_pass in (True, False):
        monkeypatch.setattr(PolicyGradient, "one_pass", one_pass)
        trainer = toy.policy_gradient(toy.ppo(**changes), reference=toy.actor("reference"), packed=packed)
        experience = experience_of(toy, trainer)
        trainer.update(experience, Metrics())  # away from the ratio 1
        found.append(gradients(trainer, experience))
    for name, right in found[1].items():
        torch.testing.assert_close(found[0][name], right, rtol=0, atol=1e-5 * float(right.abs().max()))
