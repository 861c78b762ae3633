"""``rlhf generate``: sample responses to a file of prompts, keeping the best of n if wanted."""

from __future__ import annotations

import json
import sys

import torch
from torch import Tensor

from rlhf.batch import Rollout
from rlhf.cli.application import Command, Place
from rlhf.cli.pieces import claim_results, load_reward, sampler_for, single_process, tokenizer_of
from rlhf.cli.resuming import expect_same_settings, keep_finished
from rlhf.cli.room import longest
from rlhf.config import Generate
from rlhf.distributed.engine_config import Plain
from rlhf.models.frozen import frozen
from rlhf.models.loading import load_actor
from rlhf.progress_bar import progress
from rlhf.rewards.reward import expect_finite
from rlhf.rewards.sources import NoReward
from rlhf.rollout.noise import row_noise
from rlhf.rollout.texts import RolloutTexts
from rlhf.seeding import generator


def generate(config: Generate, place: Place) -> None:
    """Write ``responses.jsonl``: prompt, response, whether it ended by itself, and a score if wanted."""
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
    sampler = sampler_for(actor, tokenizer, config.decoding, stop=config.stop)
    text = longest(prompts, new_tokens=sampler.max_new_tokens)
    text.expect_room(actor)
    reward = None
    if not isinstance(config.reward, NoReward):
        reward = load_reward(
            config.reward,
            engine=Plain(),
            actor=actor,
            tokenizer=tokenizer,
            longest=text,
            micro_rows=config.micro_batch_size,
        )
    texts = RolloutTexts(prompts, tokenizer)
    drawn = config.samples * config.best_of
    at_once = max(config.micro_batch_size // drawn, 1)
    done = keep_finished(file, prompts, config.samples) if config.resume else 0
    with (
        file.open("a", encoding="utf-8") as out,
        progress(len(prompts) * drawn, done=done * drawn) as bar,
    ):
        for first in range(done, len(prompts), at_once):
            index = torch.arange(first, min(first + at_once, len(prompts)))
            batch = prompts.batch(index, samples=drawn, groups=index)
            noise = row_noise(batch.group, sampler.max_new_tokens, config.seed, "generate")
            rollout = sampler.sample(actor, batch.to(place.runtime.device), noise.to(place.runtime.device))
            scores = None
            if reward is not None:
                scores = expect_finite(reward(rollout, texts), texts.prompts(rollout), "the reward")
                rollout, scores = _best(rollout, scores, config.best_of)
            numbers = {} if scores is None else {"score": scores}
            for row in texts.samples(rollout, numbers, len(rollout)):
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
            out.flush()
            bar.update(len(batch))
    sys.stdout.write(f"{len(prompts) * config.samples} responses: {file}\n")


def _best(rollout: Rollout, scores: Tensor, n: int) -> tuple[Rollout, Tensor]:
    """The first highest score of each run of ``n`` rows (numerics D54)."""
    best = scores.reshape(-1, n).argmax(1) + n * torch.arange(len(scores) // n, device=scores.device)
    return rollout.rows(best), scores[best]


COMMAND = Command(schema=Generate, job=generate)
