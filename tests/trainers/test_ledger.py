from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from rlhf.distributed.engine import Engine, TorchEngine, cast_parameters
from rlhf.distributed.engine_config import Plain


def mean(metrics: Any, name: str) -> float:
    total, count = metrics.pairs[name]
    return total / count


@dataclass(kw_only=True, slots=True)
class BFloat16(Plain):
    """Plain torch with half-precision weights."""

    def train(self, module: nn.Module, optimizer: torch.optim.Optimizer, name: str) -> Engine:
        return TorchEngine(cast_parameters(module, torch.bfloat16), optimizer, name=name, clip=self.clip)


@pytest.mark.parametrize("source", ["LLAMA", "GPT2"])
@pytest.mark.parametrize("exact_kl", [True, False])
@pytest.mark.parametrize("layout", [{}, {"packed": True}, {"packed": True, "micro_batch_tokens": 30}])
def test_an_update_on_the_whole_rollout_repeats_the_scoring_pass_bit_for_bit(
    toy: ModuleType, source: str, exact_kl: bool, layout: dict[str, Any]
) -> None:
    trainer = toy.policy_gradient(
        toy.ppo(epochs=2, minibatches=1),
        source=getattr(toy, source),
        exact_kl=exact_kl,
        prompts=10,
        micro_batch=3,
        **layout,
    )
    for _ in range(2):
        metrics = trainer.step()
        assert metrics.maxima["ledger/update_gap_max"] == 0.0
        assert mean(metrics, "ledger/update_gap_mean") == 0.0
        assert 0.0 < metrics.maxima["ledger/logprob_gap_max"] < 1e-5  # the sampler has a cache


@pytest.mark.parametrize("half", [False, True])
def test_an_update_on_a_part_of_the_rollout_differs_by_rounding_alone(toy: ModuleType, half: bool) -> None:
    trainer = toy.policy_gradient(
        toy.ppo(minibatches=4), prompts=12, micro_batch=3, engine=BFloat16() if half else Plain()
    )
    metrics = trainer.step()
    bound = 0.3 if half else 1e-5
    assert mean(metrics, "ledger/update_gap_mean") <= metrics.maxima["ledger/update_gap_max"] < bound


def test_the_ledger_compares_the_tokens_of_the_first_minibatch_before_anything_has_moved(
    toy: ModuleType,
) -> None:
    trainer = toy.policy_gradient(toy.ppo(epochs=3, minibatches=2), prompts=8, lr=0.1)
    rollout = trainer.collector.sample(trainer.collector.prompts(trainer.state.drawn))
    metrics = trainer.step()
    assert 0 < metrics.pairs["ledger/update_gap_mean"][1] < int(rollout.mask.sum())
    assert mean(metrics, "actor/kl_old") > 1e-3  # later minibatches are far off
    assert metrics.maxima["ledger/update_gap_max"] < 1e-5


def test_a_log_prob_that_is_not_the_scored_one_is_named(toy: ModuleType) -> None:
    trainer = toy.policy_gradient(toy.ppo(minibatches=1))
    trainer.step()
    measure = trainer.measure
    rollout = trainer.collector.sample(trainer.collector.prompts(trainer.state.drawn))
    row = int(rollout.lengths.argmax())

    def off(scored: Any) -> Any:
        measured = measure(scored)
        measured.old_logprobs[row, 1] -= 0.01
        return measured

    trainer.measure = off
    before = toy.parameters(trainer.models.actor, trainer.models.critic)
    prompt, index = trainer.train.texts.prompts(rollout)[row], int(rollout.index[row])
    message = r"rollout 2: the first update's log-probs are not those .* and 0\.01 at token 1 of the "
    message += rf"response to prompt '{prompt}' \(row {index}\); at most 0\.0001 and 0\.001 are rounding"
    with pytest.raises(FloatingPointError, match=message):
        trainer.step()
    assert toy.equal(toy.parameters(trainer.models.actor, trainer.models.critic), before)


def hotter(trainer: Any, rollout: Any) -> Any:
    """The rollout scored at a temperature 5 % higher."""
    decoding = trainer.collector.sampler.decoding
    trainer.collector.sampler.decoding = replace(decoding, temperature=decoding.temperature * 1.05)
    scored = trainer.scorer.logprobs(rollout).policy
    trainer.collector.sampler.decoding = decoding
    return scored


def shifted(trainer: Any, rollout: Any) -> Any:
    """Log-probs one token late."""
    return trainer.scorer.logprobs(rollout).policy.roll(1, 1)


def unmasked(trainer: Any, rollout: Any) -> Any:
    """Left padding attended to."""
    rollout = replace(rollout, prompt_mask=torch.ones_like(rollout.prompt_mask))
    return trainer.scorer.logprobs(rollout).policy


# In bfloat16 5 % of a temperature is within rounding.
MISTAKES = [(hotter, False), (shifted, False), (shifted, True), (unmasked, False), (unmasked, True)]


@pytest.mark.parametrize(("mistake", "half"), MISTAKES)
def test_every_usual_mistake_is_beyond_rounding(toy: ModuleType, mistake: Any, half: bool) -> None:
    trainer = toy.policy_gradient(prompts=12, engine=BFloat16() if half else Plain())
    measure = trainer.measure

    def wrong(scored: Any) -> Any:
        measured, rollout = measure(scored), scored.rollout
        with torch.no_grad():
            measured.old_logprobs = torch.where(rollout.mask, mistake(trainer, rollout), 0.0)
        return measured

    trainer.measure = wrong
    with pytest.raises(FloatingPointError, match="rollout 1: the first update's log-probs are not those"):
        trainer.step()


def test_the_first_ratio_is_not_asked_of_later_updates(toy: ModuleType) -> None:
    trainer = toy.policy_gradient(toy.ppo(epochs=4, minibatches=2), lr=0.1)
    for _ in range(2):
        trainer.step()  # moves far within a rollout, and says nothing
