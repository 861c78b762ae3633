"""The part of ``rlhf evaluate`` that looks at the reward alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rlhf.cli.application import Place
from rlhf.config import Evaluate
from rlhf.data.candidates import CandidateSet
from rlhf.data.loaded import PreferenceSet, SupervisedSet
from rlhf.distributed.collectives import gather_objects, is_main
from rlhf.evaluation.bootstrap import Bootstrap
from rlhf.evaluation.candidates import CandidateReport
from rlhf.evaluation.reward import PairReport, candidates_report, pair_report, scores_of, sides_of
from rlhf.progress_bar import progress
from rlhf.rewards.functions import import_function
from rlhf.rewards.reward import FunctionReward, Reward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(kw_only=True, slots=True)
class Labelled:
    """What people labelled."""

    pairs: PreferenceSet | None
    candidates: CandidateSet | None

    @property
    def sets(self) -> list[PreferenceSet | SupervisedSet | None]:
        """Texts that a model has to have room for."""
        return [self.pairs, None if self.candidates is None else self.candidates.texts]


def labelled(config: Evaluate, tokenizer: PreTrainedTokenizerBase) -> Labelled:
    """Pairs and candidates, read and encoded."""
    return Labelled(
        pairs=None if config.pairs.path is None else config.pairs.load(tokenizer),
        candidates=None if config.candidates.path is None else config.candidates.load(tokenizer),
    )


def reward_reports(
    config: Evaluate, data: Labelled, reward: Reward, tokenizer: PreTrainedTokenizerBase, place: Place
) -> tuple[PairReport | None, CandidateReport | None]:
    """Score what was labelled, a share on each rank; every rank has both reports."""
    bootstrap = Bootstrap(resamples=config.resamples, seed=config.seed)

    def scores(name: str, scorer: Reward, texts: SupervisedSet) -> list[float]:
        share = torch.arange(len(texts)).tensor_split(place.runtime.world_size)[place.runtime.rank]
        with progress(len(share), label=f"scores of {name}", shown=is_main()) as bar:
            mine = scores_of(
                scorer,
                texts,
                share,
                name=name,
                decoder=tokenizer,
                rows=config.micro_batch_size,
                device=place.runtime.device,
                progress=bar.update,
            )
        return [score for part in gather_objects(mine) for score in part]

    pairs = candidates = None
    if data.pairs is not None:
        sides = sides_of(data.pairs)
        found = {name: scores(name, scorer, sides) for name, scorer in _scorers(config, reward).items()}
        pairs = pair_report(data.pairs, found, config.categories, bootstrap)
    if data.candidates is not None:
        best = scores("reward", reward, data.candidates.texts)
        candidates = candidates_report(data.candidates, best, config.categories, bootstrap)
    return pairs, candidates


def _scorers(config: Evaluate, reward: Reward) -> dict[str, Reward]:
    """The reward, and the judge beside it."""
    if config.judge is None:
        return {"reward": reward}
    name = config.judge.rpartition(":")[2]
    return {"reward": reward, name: FunctionReward(function=import_function(config.judge), name=name)}
