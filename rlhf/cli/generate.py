"""``rlhf generate``: sample responses to a file of prompts, keeping the best of n if wanted."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from rlhf.batch import Rollout
from rlhf.cli.application import Command, Place
from rlhf.cli.pieces import claim_results, load_reward, sampler_for, single_process, tokenizer_of
from rlhf.cli.resuming import expect_same_settings, keep_finished
from rlhf.cli.room import Longest, longest
from rlhf.config import Generate
from rlhf.data.prefixes import with_prefix
from rlhf.data.rows import Prompt
from rlhf.distributed.engine_config import Plain
from rlhf.models.actor import Actor
from rlhf.models.frozen import frozen
from rlhf.models.loading import load_actor
from rlhf.ops.best_of_n import best_rows
from rlhf.progress_bar import progress
from rlhf.rewards.reward import Reward, expect_finite
from rlhf.rewards.sources import NoReward
from rlhf.rollout.contract import sampled
from rlhf.rollout.noise import row_noise
from rlhf.rollout.texts import RolloutTexts
from rlhf.seeding import generator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def generate(config: Generate, place: Place) -> None:
    """Write ``responses.jsonl``: prompt, response, whether it ended by itself, and its score if wanted."""
    single_process(place, "rlhf generate")
    file = place.folder / "responses.jsonl"
    if config.resume:
        expect_same_settings(place, file)
    else:
        claim_results(place, (file.name,))
    tokenizer = tokenizer_of(config.model)
    actor = frozen(load_actor(config.model, tokenizer, generator=generator(0, "unused")))
    actor.to(place.runtime.device)
    prompts = config.prompts.load(tokenizer)
    asked = with_prefix(prompts, config.prefix, tokenizer)
    sampler = sampler_for(actor, tokenizer, config.decoding, stop=config.stop)
    longest(asked, new_tokens=sampler.max_new_tokens).expect_room(actor)
    reward = _reward(config, actor, tokenizer, longest(prompts, new_tokens=sampler.max_new_tokens))
    texts = RolloutTexts(prompts, tokenizer)
    drawn = config.samples * config.best_of
    at_once = max(config.micro_batch_size // drawn, 1)
    done = keep_finished(file, prompts.given, config.samples) if config.resume else 0
    with (
        file.open("a", encoding="utf-8") as out,
        progress(len(prompts) * drawn, done=done * drawn) as bar,
    ):
        for first in range(done, len(prompts), at_once):
            index = torch.arange(first, min(first + at_once, len(prompts)))
            batch = asked.batch(index, samples=drawn, groups=index).to(place.runtime.device)
            noise = row_noise(batch.group, sampler.max_new_tokens, config.seed, "generate")
            rollout = sampled(sampler, actor, batch, noise.to(place.runtime.device))
            bare = prompts.batch(index, samples=drawn, groups=index).to(place.runtime.device)
            for row in _rows(rollout.after(bare), texts, prompts.given, reward, config.best_of):
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
            out.flush()
            bar.update(len(batch))
    sys.stdout.write(f"{len(prompts) * config.samples} responses: {file}\n")


def _reward(
    config: Generate, actor: Actor, tokenizer: PreTrainedTokenizerBase, text: Longest
) -> Reward | None:
    if isinstance(config.reward, NoReward):
        return None
    return load_reward(
        config.reward,
        engine=Plain(),
        actor=actor,
        tokenizer=tokenizer,
        longest=text,
        micro_rows=config.micro_batch_size,
    )


def _rows(
    rollout: Rollout, texts: RolloutTexts, given: Sequence[Prompt], reward: Reward | None, n: int
) -> list[dict[str, object]]:
    """The responses as rows, with a reward the best of each ``n`` in succession alone."""
    if reward is None:
        rows = texts.samples(rollout, {}, len(rollout))
    else:
        scores = expect_finite(reward(rollout, texts), texts.prompts(rollout), "the reward")
        best = best_rows(scores, n)
        rollout = rollout.rows(best)
        rows = texts.samples(rollout, {"score": scores[best]}, len(rollout))
        rows = [row | {"best_of": n} for row in rows]
    return [row | {"prompt": given[i]} for row, i in zip(rows, rollout.index.tolist(), strict=True)]


COMMAND = Command(schema=Generate, job=generate)
