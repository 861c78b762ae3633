"""Another engine in the sampler's place: transformers' generate, on a half-precision copy of the actor."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import pytest
import torch

from rlhf.algorithms.advantages import GreedyBaseline
from rlhf.batch import PromptBatch, Rollout
from rlhf.models.actor import Actor
from rlhf.rollout.contract import sampled

EOS, PAD = 1, 2


@dataclass(kw_only=True)
class Generate:
    """All that `rlhf.rollout.contract.ResponseSampler` asks for, and the rollouts that it made."""

    max_new_tokens: int = 6
    temperature: float = 0.9
    do_sample: bool = True
    made: list[Rollout] = field(default_factory=list)

    def greedy(self) -> Generate:
        return replace(self, do_sample=False)

    @torch.no_grad()
    def sample(self, actor: Actor, prompts: PromptBatch, noise: torch.Tensor) -> Rollout:
        engine = copy.deepcopy(actor.model).bfloat16().eval()
        draw = {"do_sample": True, "top_k": 0, "temperature": self.temperature}
        with torch.random.fork_rng():
            torch.manual_seed(int(noise[0, 0] * 2**32))
            found = engine.generate(
                prompts.tokens,
                attention_mask=prompts.mask.long(),
                max_new_tokens=self.max_new_tokens,
                eos_token_id=EOS,
                pad_token_id=PAD,
                output_scores=True,
                return_dict_in_generate=True,
                **(draw if self.do_sample else {"do_sample": False}),
            )
        tokens = found.sequences[:, prompts.tokens.shape[1] :]
        logprobs = torch.stack([score.float().log_softmax(1) for score in found.scores], 1)
        end = (tokens == EOS).long()
        mask = end.cumsum(1) - end == 0
        self.made.append(
            Rollout(
                tokens=found.sequences,
                prompt_mask=prompts.mask,
                mask=mask,
                ended=(end.bool() & mask).any(1),
                sampler_logprobs=torch.where(mask, logprobs.gather(2, tokens[:, :, None])[:, :, 0], 0.0),
                index=prompts.index,
                group=prompts.group,
            )
        )
        return self.made[-1]


def gaps(actor: Actor, rollout: Rollout, temperature: float) -> list[float]:
    """|log π_sampler − log π| of each token, by the model's own forward over each row, in float64."""
    model, found = copy.deepcopy(actor.model).double().eval(), []
    for row in range(len(rollout)):
        length, mask = int(rollout.lengths[row]), rollout.attention_mask[row]
        tokens = rollout.tokens[row][mask]
        with torch.no_grad():
            logprobs = (model(tokens[None]).logits[0, -length - 1 : -1] / temperature).log_softmax(1)
        drawn = logprobs.gather(1, tokens[-length:, None])[:, 0]
        found += (rollout.sampler_logprobs[row, :length] - drawn).abs().tolist()
    return found


def test_the_ledger_says_how_far_another_engine_is_from_the_policy(toy: ModuleType) -> None:
    trainer, engine = toy.policy_gradient(), Generate()
    trainer.collector.sampler = trainer.scorer.sampler = engine
    for _ in range(2):
        before = copy.deepcopy(trainer.models.actor.module)
        metrics = trainer.step()
        found = gaps(before, engine.made[-1], 0.9)
        total, count = metrics.pairs["ledger/logprob_gap_mean"]
        assert count == len(found)
        assert total / count == pytest.approx(sum(found) / len(found), abs=1e-5)
        assert metrics.maxima["ledger/logprob_gap_max"] == pytest.approx(max(found), abs=1e-5)
        assert total / count > 1e-3  # half precision shows
        assert metrics.maxima["ledger/update_gap_max"] < 1e-5  # the policy's own log-probs are learnt from


def test_the_greedy_baseline_is_another_engine_s_too(toy: ModuleType) -> None:
    trainer = toy.policy_gradient(toy.rloo(advantage=GreedyBaseline()), samples=2)
    engine = trainer.collector.sampler = trainer.scorer.sampler = Generate()
    trainer.step()  # greedy() shares the list of what was made
    drawn, likeliest = engine.made
    assert drawn.group.tolist() == likeliest.group.repeat_interleave(2).tolist()


def changed(change: Callable[[Rollout], Any]) -> Any:
    """An engine that makes one mistake."""

    class Wrong(Generate):
        def sample(self, actor: Actor, prompts: PromptBatch, noise: torch.Tensor) -> Rollout:
            rollout = Generate.sample(self, actor, prompts, noise)
            return change(rollout) or rollout

    return Wrong()


def longer(rollout: Rollout) -> Rollout:
    return rollout.widened(rollout.prompt_mask.shape[1], 7)


def other_prompt(rollout: Rollout) -> None:
    rollout.tokens[2, rollout.prompt_mask.shape[1] - 1] += 1


def fewer(rollout: Rollout) -> Rollout:
    return rollout.rows(torch.arange(len(rollout) - 1))


def other_order(rollout: Rollout) -> Rollout:
    return replace(rollout, group=rollout.group.flip(0))


def nothing(rollout: Rollout) -> None:
    rollout.mask[1] = False


def foreign_token(rollout: Rollout) -> None:
    rollout.responses[3, 0] = 13


def not_a_log(rollout: Rollout) -> None:
    rollout.sampler_logprobs[4, 0] = rollout.sampler_logprobs[4, 0].exp()


def unshifted(rollout: Rollout) -> Rollout:
    return replace(rollout, sampler_logprobs=rollout.sampler_logprobs[:, :-1])


MISTAKES: list[tuple[Callable[[Rollout], Any], str]] = [
    (longer, r"responses have 7 columns, expected 1 to 6 \(max_new_tokens\)"),
    (other_prompt, "row 2 has another prompt than was asked for"),
    (fewer, r"tokens have shape \(7, \d+\), expected 8 rows"),
    (other_order, "row 0 has another index or group than its prompt"),
    (nothing, "row 1 has no token"),
    (foreign_token, "row 3 holds a token outside the vocabulary of 13"),
    (not_a_log, "row 4 has a log-prob above 0"),
    (unshifted, r"Rollout.sampler_logprobs has shape .*, expected"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_what_is_no_response_to_these_prompts_is_refused(
    toy: ModuleType, change: Callable[[Rollout], Any], message: str
) -> None:
    trainer = toy.policy_gradient()
    trainer.collector.sampler = changed(change)
    before = toy.parameters(trainer.models.actor)
    with pytest.raises(ValueError, match=message):
        trainer.step()
    assert toy.equal(toy.parameters(trainer.models.actor), before)


def test_what_is_padding_in_a_prompt_may_be_anything(toy: ModuleType) -> None:
    trainer = toy.policy_gradient()
    prompts = toy.next_prompts(trainer)
    assert not prompts.mask.all()

    def filled(rollout: Rollout) -> None:
        rollout.tokens[:, : rollout.prompt_mask.shape[1]][~rollout.prompt_mask] = 7

    noise = torch.rand(len(prompts), 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sampled(changed(filled), trainer.models.sampling_actor(), prompts, noise)
