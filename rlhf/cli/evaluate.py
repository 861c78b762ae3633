"""``rlhf evaluate``: policies side by side on unseen prompts, a reward against human labels, or both."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rlhf.cli.application import Command, Place
from rlhf.cli.pieces import claim_results, load_reward, sampler_for
from rlhf.cli.reward_evaluation import labelled, reward_reports
from rlhf.cli.room import Longest, longest
from rlhf.config import Evaluate
from rlhf.data.loaded import PromptSet
from rlhf.data.prefixes import with_prefix
from rlhf.data.tokenizers import load_tokenizer
from rlhf.distributed.collectives import gather_objects, is_main
from rlhf.distributed.engine_config import Plain
from rlhf.evaluation.best_of_n import BestOfN, best_of_n
from rlhf.evaluation.candidates import CandidateReport
from rlhf.evaluation.plots import comparison
from rlhf.evaluation.policies import Response, Summary, best_of, summarise, summarise_best
from rlhf.evaluation.report import best_of_n_table, policy_table, side_by_side, write_json
from rlhf.evaluation.responses import Evaluator
from rlhf.evaluation.reward import PairReport
from rlhf.evaluation.reward_plots import reward_picture
from rlhf.evaluation.reward_tables import candidate_section, pair_section
from rlhf.models.actor import Actor
from rlhf.models.frozen import frozen
from rlhf.models.loading import expect_same_vocabulary, load_actor
from rlhf.models.sources import Pretrained
from rlhf.progress_bar import progress
from rlhf.rewards.functions import import_function
from rlhf.rewards.reward import Reward
from rlhf.rewards.sources import own_tokenizer
from rlhf.rollout.texts import RolloutTexts
from rlhf.seeding import generator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POLICIES, REWARD = "policies.png", "reward.png"


def evaluate(config: Evaluate, place: Place) -> None:
    """Measure, and write ``report.md``, ``report.json``, ``policies.png`` and ``reward.png``."""
    _expect_work(config)
    files = _files(config)
    claim_results(place, files)
    tokenizer = load_tokenizer(_tokenizer_source(config))
    reference = None if config.prompts.path is None else _policy(config.reference.path, tokenizer, place)
    prompts = None if reference is None else config.prompts.load(tokenizer)
    data = labelled(config, tokenizer)
    texts = [longest(rows) for rows in data.sets if rows is not None]
    if prompts is not None and reference is not None:
        texts.append(longest(prompts, new_tokens=config.sampling.max_new_tokens))
        texts[-1].expect_room(reference)
    reward = load_reward(
        config.reward,
        engine=Plain(),
        actor=reference,
        tokenizer=tokenizer,
        longest=max(texts, key=Longest.needed),
        micro_rows=config.micro_batch_size,
    )
    pairs, candidates = reward_reports(config, data, reward, tokenizer, place)
    found = Policies()
    if prompts is not None and reference is not None:
        evaluator = _evaluator(config, prompts, reference, reward, tokenizer, place)
        found = _compare(config, evaluator, tokenizer, place)
    if is_main():
        _write(place.folder, config, files, found, pairs, candidates)


@dataclass(kw_only=True, slots=True)
class Policies:
    """What was found out about policies; nothing, where there were no prompts."""

    summaries: list[Summary] = field(default_factory=list)
    responses: dict[str, list[Response]] = field(default_factory=dict)
    curve: list[BestOfN] = field(default_factory=list)


def _expect_work(config: Evaluate) -> None:
    """Refuse a command that has nothing to evaluate, or policies without what they need."""
    if config.prompts.path is None:
        if config.pairs.path is None and config.candidates.path is None:
            raise ValueError(
                "nothing to evaluate: give prompts.path=… for policies, pairs.path=… or candidates.path=… "
                "for the reward"
            )
        if config.policies or config.best_of:
            raise ValueError("policies and best_of need prompts to answer: give prompts.path=…")
    elif config.reference.path is None:
        raise ValueError("prompts are answered by the reference first: give reference.path=…")


def _files(config: Evaluate) -> list[str]:
    pictures = [POLICIES] if config.prompts.path is not None else []
    if config.pairs.path is not None or config.candidates.path is not None:
        pictures.append(REWARD)
    return ["report.md", "report.json", *pictures]


def _tokenizer_source(config: Evaluate) -> str:
    if config.tokenizer is not None:
        return config.tokenizer
    path = config.reference.path or own_tokenizer(config.reward)
    if path is None:
        raise ValueError(
            "tokenizer must name one: there is no reference, and the reward is no model with its own"
        )
    return Pretrained(path=path).folder


def _policy(path: str | None, tokenizer: PreTrainedTokenizerBase, place: Place) -> Actor:
    source = Pretrained(path=str(path))
    return frozen(load_actor(source, tokenizer, generator=generator(0, "unused"))).to(place.runtime.device)


def _evaluator(  # noqa: PLR0917 - the pieces
    config: Evaluate,
    prompts: PromptSet,
    reference: Actor,
    reward: Reward,
    tokenizer: PreTrainedTokenizerBase,
    place: Place,
) -> Evaluator:
    return Evaluator(
        prompts=prompts,
        texts=RolloutTexts(prompts, tokenizer),
        sampler=sampler_for(reference, tokenizer, config.sampling),
        reference=reference,
        reward=reward,
        judge=None if config.judge is None else import_function(config.judge),
        rows=config.micro_batch_size,
        seed=config.seed,
        device=place.runtime.device,
    )


def _compare(
    config: Evaluate, evaluator: Evaluator, tokenizer: PreTrainedTokenizerBase, place: Place
) -> Policies:
    """Every policy on the same prompts, the reference first; and the curve of its best of n."""
    prompts, reference = evaluator.prompts, evaluator.reference

    def respond(name: str, actor: Actor, samples: int, asked: PromptSet | None = None) -> list[Response]:
        everyone = torch.arange(len(prompts))
        share = everyone.tensor_split(place.runtime.world_size)[place.runtime.rank]
        with progress(len(share) * samples, label=name, shown=is_main()) as bar:
            mine = evaluator(actor, share, samples, bar.update, asked=asked)
        return [response for part in gather_objects(mine) for response in part]

    responses = {config.reference_name: respond(config.reference_name, reference, 1)}
    summaries = [summarise(config.reference_name, responses[config.reference_name])]
    most = max(config.best_of, default=0)
    drawn = respond(f"best of {most}", reference, most) if most else []
    curve = best_of_n(drawn, most) if most else []
    for n in config.best_of:
        name = f"best of {n}"
        responses[name] = best_of(drawn, n, most)
        summaries.append(summarise_best(name, responses[name], n))
    for name, path in config.policies.items():
        policy = _policy(path, tokenizer, place)
        expect_same_vocabulary(reference, policy)
        asked = with_prefix(prompts, config.prefixes.get(name, ""), tokenizer)
        longest(asked, new_tokens=config.sampling.max_new_tokens).expect_room(policy)
        responses[name] = respond(name, policy, 1, asked)
        summaries.append(summarise(name, responses[name]))
    return Policies(summaries=summaries, responses=responses, curve=curve)


def _write(  # noqa: PLR0917 - what was found
    folder: Path,
    config: Evaluate,
    files: Sequence[str],
    found: Policies,
    pairs: PairReport | None,
    candidates: CandidateReport | None,
) -> None:
    judge = "judge" if config.judge is None else config.judge.rpartition(":")[2]
    parts = [policy_table(found.summaries, judge)] if found.summaries else []
    if found.curve:
        title = (
            f"The best of n responses of {config.reference_name}, estimated from {len(found.curve)} a prompt:"
        )
        parts.append(f"{title}\n\n{best_of_n_table(found.curve, judge)}")
    if pairs is not None:
        parts.append(pair_section(pairs))
    if candidates is not None:
        parts.append(candidate_section(candidates))
    if found.responses:
        texts = "Responses to the first prompts, with their scores:\n\n" + side_by_side(found.responses)
        parts.append(texts)
    report = "\n\n".join(parts)
    (folder / "report.md").write_text(f"{report}\n", encoding="utf-8")
    write_json(
        folder / "report.json",
        summaries=found.summaries,
        responses=found.responses,
        curve=found.curve,
        pairs=pairs,
        candidates=candidates,
    )
    if POLICIES in files:
        comparison(folder / POLICIES, found.summaries, found.responses, found.curve)
    if REWARD in files:
        reward_picture(folder / REWARD, pairs, candidates)
    sys.stdout.write(f"\n{report}\n\nwritten to {folder}: {', '.join(files)}\n")


COMMAND = Command(schema=Evaluate, job=evaluate)
