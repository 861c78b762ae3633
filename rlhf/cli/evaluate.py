"""``rlhf evaluate``: policies side by side on unseen prompts, and a reward model against human labels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rlhf.cli.application import Command, Place
from rlhf.cli.pieces import claim_results, load_reward, sampler_for, tokenizer_of
from rlhf.cli.room import Longest, longest
from rlhf.config import Evaluate
from rlhf.data.loaded import PreferenceSet, PromptSet
from rlhf.data.prefixes import with_prefix
from rlhf.distributed.collectives import gather_objects, is_main
from rlhf.distributed.engine_config import Plain
from rlhf.evaluation.best_of_n import BestOfN, best_of_n
from rlhf.evaluation.pairs import Agreement, agreement
from rlhf.evaluation.plots import comparison
from rlhf.evaluation.policies import Response, Summary, best_of, summarise, summarise_best
from rlhf.evaluation.report import agreement_table, best_of_n_table, policy_table, side_by_side, write_json
from rlhf.evaluation.responses import Evaluator
from rlhf.models.actor import Actor
from rlhf.models.frozen import frozen
from rlhf.models.loading import expect_same_vocabulary, load_actor
from rlhf.models.sources import Pretrained
from rlhf.progress_bar import progress
from rlhf.rewards.functions import import_function
from rlhf.rewards.reward import FunctionReward, Reward
from rlhf.rollout.texts import RolloutTexts
from rlhf.seeding import generator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILES = ("report.md", "report.json", "policies.png")


def evaluate(config: Evaluate, place: Place) -> None:
    """Sample, measure, and write ``report.md``, ``report.json`` and ``policies.png``."""
    claim_results(place, FILES)
    tokenizer = tokenizer_of(config.reference)
    reference = _policy(config.reference, tokenizer, place)
    prompts = config.prompts.load(tokenizer)
    pairs = None if config.pairs.path is None else config.pairs.load(tokenizer)
    sampled = longest(prompts, new_tokens=config.sampling.max_new_tokens)
    sampled.expect_room(reference)
    reward = load_reward(
        config.reward,
        engine=Plain(),
        actor=reference,
        tokenizer=tokenizer,
        longest=sampled if pairs is None else max(sampled, longest(pairs), key=Longest.needed),
        micro_rows=config.micro_batch_size,
    )
    agreements = [] if pairs is None else _agreements(config, pairs, reward, tokenizer, place)
    evaluator = Evaluator(
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
    summaries, responses, curve = _compare(config, evaluator, tokenizer, place)
    if is_main():
        _write(
            place.folder,
            config,
            agreements=agreements,
            summaries=summaries,
            responses=responses,
            curve=curve,
        )


def _policy(source: Pretrained, tokenizer: PreTrainedTokenizerBase, place: Place) -> Actor:
    return frozen(load_actor(source, tokenizer, generator=generator(0, "unused"))).to(place.runtime.device)


def _agreements(
    config: Evaluate,
    pairs: PreferenceSet,
    reward: Reward,
    tokenizer: PreTrainedTokenizerBase,
    place: Place,
) -> list[Agreement]:
    """How the reward, and the judge, rank the human-labelled pairs."""
    scorers = {"reward": reward} | _judge(config)
    found = []
    for name, scorer in scorers.items():
        sides: tuple[list[float], list[float]] = ([], [])
        for index in torch.arange(len(pairs)).split(config.micro_batch_size):
            batch = pairs.batch(index).to(place.runtime.device)
            for scores, side in zip(sides, (batch.chosen, batch.rejected), strict=True):
                scores.extend(scorer.sequences(side, tokenizer).tolist())
        found.append(agreement(name, *sides))
    return found


def _judge(config: Evaluate) -> dict[str, Reward]:
    if config.judge is None:
        return {}
    name = config.judge.rpartition(":")[2]
    return {name: FunctionReward(function=import_function(config.judge), name=name)}


def _compare(
    config: Evaluate, evaluator: Evaluator, tokenizer: PreTrainedTokenizerBase, place: Place
) -> tuple[list[Summary], dict[str, list[Response]], list[BestOfN]]:
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
        policy = _policy(Pretrained(path=path), tokenizer, place)
        expect_same_vocabulary(reference, policy)
        asked = with_prefix(prompts, config.prefixes.get(name, ""), tokenizer)
        longest(asked, new_tokens=config.sampling.max_new_tokens).expect_room(policy)
        responses[name] = respond(name, policy, 1, asked)
        summaries.append(summarise(name, responses[name]))
    return summaries, responses, curve


def _write(
    folder: Path,
    config: Evaluate,
    *,
    agreements: list[Agreement],
    summaries: list[Summary],
    responses: dict[str, list[Response]],
    curve: list[BestOfN],
) -> None:
    judge = "judge" if config.judge is None else config.judge.rpartition(":")[2]
    parts = [policy_table(summaries, judge)]
    if curve:
        title = f"The best of n responses of {config.reference_name}, estimated from {len(curve)} a prompt:"
        parts.append(f"{title}\n\n{best_of_n_table(curve, judge)}")
    if agreements:
        parts.append("Agreement with human labels, on held-out pairs:\n\n" + agreement_table(agreements))
    report = "\n\n".join(parts)
    texts = "Responses to the first prompts, with their scores:\n\n" + side_by_side(responses)
    (folder / "report.md").write_text(f"{report}\n\n{texts}\n", encoding="utf-8")
    write_json(folder / "report.json", summaries, agreements, responses, curve)
    comparison(folder / "policies.png", summaries, responses, curve)
    sys.stdout.write(f"\n{report}\n\n{texts}\n\nwritten to {folder}: {', '.join(FILES)}\n")


COMMAND = Command(schema=Evaluate, job=evaluate)
