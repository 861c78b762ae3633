"""``rlhf refine``: new responses in place of failed ones, from feedback in words."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from rlhf.cli.application import Command, Place
from rlhf.cli.pieces import claim_results, sampler_for, single_process, tokenizer_of
from rlhf.cli.room import longest
from rlhf.config import Refine
from rlhf.data.drafts import Draft, failed_drafts
from rlhf.data.sets import PromptData
from rlhf.models.frozen import frozen
from rlhf.models.loading import load_actor
from rlhf.models.sources import Pretrained
from rlhf.progress_bar import progress
from rlhf.rewards.functions import call_function, import_function
from rlhf.rollout.contract import sampled
from rlhf.rollout.noise import row_noise
from rlhf.rollout.refinement import FeedbackColumn, FeedbackFunction, RefinerFunction, RefinerModel
from rlhf.rollout.texts import RolloutTexts
from rlhf.seeding import generator

Proposal = tuple[str, bool]
"""A new response, and whether it ended by itself."""


def refine(config: Refine, place: Place) -> None:
    """Write ``refinements.jsonl``, whole or not at all: new responses in place of failed ones, unscored."""
    single_process(place, "rlhf refine")
    if not config.input:
        raise ValueError("input must name files of scored responses: input=[runs/NAME/responses.jsonl]")
    file = place.folder / "refinements.jsonl"
    claim_results(place, (file.name,))
    drafts, read = failed_drafts(config.input, threshold=config.threshold, tasks=config.tasks)
    if not drafts:
        raise ValueError(f"all {read} responses score at least {config.threshold:g}: nothing to refine")
    part, count = file.with_suffix(".part"), 0
    for draft, feedback in zip(drafts, _feedback(drafts, config), strict=True):
        draft.columns["feedback"] = feedback
    with part.open("w", encoding="utf-8") as out, progress(len(drafts)) as bar:
        for draft, proposals in zip(drafts, _proposals(drafts, config, place), strict=True):
            for response, ended in proposals:
                own = {"prompt": draft.prompt, "response": response, "ended": ended, "draft": draft.response}
                out.write(json.dumps(own | draft.columns | own, ensure_ascii=False, default=str) + "\n")
                count += 1
            bar.update()
    part.replace(file)
    sys.stdout.write(f"{read} responses read, {len(drafts)} failed, {count} refinements: {file}\n")


def _feedback(drafts: Sequence[Draft], config: Refine) -> list[str]:
    """What is said of each draft.

    Raises:
        ValueError: a row has no feedback, or the function failed or gave something else than texts.
    """
    source = config.feedback
    if isinstance(source, FeedbackFunction):
        parts = _in_parts(drafts, config.micro_batch_size)
        return [text for part in parts for text in _called(source, part)]
    assert isinstance(source, FeedbackColumn)
    for draft in drafts:
        if not isinstance(draft.columns.get(source.column), str):
            found = draft.columns.get(source.column)
            raise ValueError(f"{draft.where}: feedback in column {source.column!r} is {found!r}, not a text")
    return [draft.columns[source.column] for draft in drafts]


def _proposals(drafts: Sequence[Draft], config: Refine, place: Place) -> Iterator[list[Proposal]]:
    """New responses for each draft."""
    if isinstance(config.refiner, RefinerFunction):
        for part in _in_parts(drafts, config.micro_batch_size):
            yield from ([(response, True)] for response in _called(config.refiner, part))
    else:
        assert isinstance(config.refiner, RefinerModel)
        yield from _sampled(config.refiner, drafts, config, place)


def _sampled(
    refiner: RefinerModel, drafts: Sequence[Draft], config: Refine, place: Place
) -> Iterator[list[Proposal]]:
    """What the model goes on with; its prompts are left in ``asked.jsonl``."""
    source = Pretrained(path=refiner.path)
    tokenizer = tokenizer_of(source)
    actor = frozen(load_actor(source, tokenizer, generator=generator(0, "unused")))
    actor.to(place.runtime.device)
    asked = _asked(refiner, drafts, place.folder / "asked.jsonl")
    prompts = PromptData(path=str(asked), max_prompt_length=refiner.max_prompt_length).load(tokenizer)
    sampler = sampler_for(actor, tokenizer, refiner.sampling, stop=refiner.stop)
    longest(prompts, new_tokens=sampler.max_new_tokens).expect_room(actor)
    texts = RolloutTexts(prompts, tokenizer)
    for index in torch.arange(len(prompts)).split(max(config.micro_batch_size // refiner.samples, 1)):
        batch = prompts.batch(index, samples=refiner.samples, groups=index)
        noise = row_noise(batch.group, sampler.max_new_tokens, config.seed, "refine")
        rollout = sampled(sampler, actor, batch.to(place.runtime.device), noise.to(place.runtime.device))
        new = list(zip(texts.responses(rollout), rollout.ended.tolist(), strict=True))
        yield from (new[row : row + refiner.samples] for row in range(0, len(new), refiner.samples))


def _asked(refiner: RefinerModel, drafts: Sequence[Draft], file: Path) -> Path:
    rows = (refiner.asked(draft.prompt, draft.response, draft.columns["feedback"]) for draft in drafts)
    file.write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows), encoding="utf-8")
    return file


def _in_parts(drafts: Sequence[Draft], size: int) -> Iterator[Sequence[Draft]]:
    for first in range(0, len(drafts), size):
        yield drafts[first : first + size]


def _called(source: FeedbackFunction | RefinerFunction, drafts: Sequence[Draft]) -> list[str]:
    """One text a draft from a function that somebody else wrote.

    Raises:
        ValueError: it raised, took too long, or gave something else.
    """
    texts = call_function(
        import_function(source.function),
        [draft.prompt for draft in drafts],
        [draft.response for draft in drafts],
        [draft.columns for draft in drafts],
        name=source.function,
        timeout_seconds=source.timeout_seconds,
    )
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{source.function} must return a list of {len(drafts)} texts, got {texts!r:.100}")
    if len(texts) != len(drafts):
        raise ValueError(f"{source.function} returned {len(texts)} texts for {len(drafts)} responses")
    return texts


COMMAND = Command(schema=Refine, job=refine)
