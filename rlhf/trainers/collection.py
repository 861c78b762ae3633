"""Rollouts: draw prompts, sample responses, have them scored, and replace groups that teach nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.batch import PromptBatch, Rollout, concatenate
from rlhf.data.loaded import PromptSet
from rlhf.data.order import batch_indices, rank_share
from rlhf.distributed.collectives import all_sum, gather_objects
from rlhf.distributed.runtime import Runtime
from rlhf.metrics import Clock
from rlhf.models.actor import Actor
from rlhf.ops.baselines import unequal_groups
from rlhf.rewards.mixture import named_scores, score_names
from rlhf.rewards.reward import NotFinite, Reward
from rlhf.rollout.contract import ResponseSampler, sampled
from rlhf.rollout.noise import row_noise
from rlhf.rollout.texts import RolloutTexts
from rlhf.trainers.faults import Faults, Row
from rlhf.trainers.micro_batches import dealt


@dataclass(kw_only=True, slots=True)
class Prompts:
    """A prompt set, encoded and as text."""

    rows: PromptSet
    texts: RolloutTexts


@dataclass(kw_only=True, slots=True)
class Sizes:
    """Rows, counted over all ranks."""

    prompts: int
    """Prompts of one rollout."""
    samples: int
    """Responses sampled for each prompt."""
    micro_batch: int
    """Rows of one forward and backward pass."""
    micro_batch_tokens: int | None = None
    """Tokens of one forward and backward pass, which then count in place of rows."""


@dataclass(kw_only=True, slots=True)
class Scored:
    """Responses and what the reward says of them."""

    rollout: Rollout
    scores: Tensor
    """(B,) what is optimised, as the reward gave it."""
    parts: dict[str, Tensor]
    """(B,) each: the parts of a mixture, by name."""

    def rows(self, index: Tensor) -> Scored:
        """Some of the rows."""
        return Scored(
            rollout=self.rollout.rows(index),
            scores=self.scores[index],
            parts={name: part[index] for name, part in self.parts.items()},
        )

    def to(self, device: torch.device) -> Scored:
        """The same on another device."""
        return Scored(
            rollout=self.rollout.to(device),
            scores=self.scores.to(device),
            parts={name: part.to(device) for name, part in self.parts.items()},
        )


@dataclass(kw_only=True, slots=True)
class Collected:
    """What a rollout is learnt from."""

    scored: Scored
    drawn: int
    """Prompts drawn for it, over all ranks."""
    unequal: int
    """Those of them whose responses had unequal scores."""


class Collector:
    """Makes rollouts. A row's randomness depends on the seed, its prompt's group and its sample alone."""

    def __init__(
        self,
        *,
        sampling_actor: Callable[[], Actor],
        reward: Reward,
        sampler: ResponseSampler,
        prompts: Prompts,
        sizes: Sizes,
        draws: int | None,
        adjusted: Callable[[Tensor, Tensor, Tensor], Tensor],
        seed: int,
        runtime: Runtime,
        faults: Faults,
    ) -> None:
        """Take what rollouts are made of.

        Args:
            sampling_actor: the actor's present weights in a plain module.
            reward: scores responses.
            sampler: samples them.
            prompts: what rollouts are drawn from.
            sizes: rows over all ranks.
            draws: times that prompts may be drawn for one rollout, to replace groups of equal scores
                (numerics D50); None keeps what the first draw gave.
            adjusted: `rlhf.algorithms.policy_gradient.PolicyGradient.adjusted`; the scores that are compared.
            seed: of the run.
            runtime: this rank among the others.
            faults: receives scores that are not finite.
        """
        self.sampling_actor, self.reward, self.sampler = sampling_actor, reward, sampler
        self.train, self.sizes, self.draws, self.adjusted = prompts, sizes, draws, adjusted
        self.seed, self.runtime, self.faults = seed, runtime, faults

    def collect(self, first: int, clock: Clock) -> Collected:
        """The rollout whose first prompt is number ``first`` of the endless sequence of prompts."""
        wanted, drawn = self.sizes.prompts, self.sizes.prompts
        found = [self._draw(first, wanted, clock)]
        unequal = self._unequal(found[0])
        while self.draws is not None and unequal < wanted and len(found) < self.draws:
            missing, ranks = wanted - unequal, self.runtime.world_size
            more = self._draw(first + drawn, -(-missing // ranks) * ranks, clock)  # equally many on each
            drawn += missing
            found.append(more.rows(more.rollout.group < first + drawn))
            unequal += self._unequal(found[-1])
        if len(found) > 1 or self.runtime.world_size > 1:
            return Collected(scored=self._chosen(found), drawn=drawn, unequal=unequal)
        return Collected(scored=found[0], drawn=drawn, unequal=unequal)

    def prompts(self, first: int, count: int | None = None) -> PromptBatch:
        """This rank's share of ``count`` prompts from number ``first`` on, each repeated once per sample."""
        count = self.sizes.prompts if count is None else count
        return drawn_prompts(
            self.train.rows, first, count, samples=self.sizes.samples, seed=self.seed, runtime=self.runtime
        )

    def sample(
        self, prompts: PromptBatch, stream: str = "sampling", *, actor: Actor | None = None
    ) -> Rollout:
        """Responses to ``prompts`` from the actor's present weights, or from another ``actor``."""
        noise = row_noise(prompts.group, self.sampler.max_new_tokens, self.seed, stream)
        actor = self.sampling_actor() if actor is None else actor
        device = self.runtime.device
        return sampled(self.sampler, actor, prompts.to(device), noise.to(device))

    def greedy(self, rollout: Rollout, clock: Clock) -> Scored:
        """The most likely response to each prompt of ``rollout``, one row a group."""
        first = torch.ones_like(rollout.group, dtype=torch.bool)
        first[1:] = rollout.group[1:] != rollout.group[:-1]  # the rows of a group stand together
        prompts, length = rollout.prompts.rows(first), self.sampler.max_new_tokens
        noise = torch.zeros(len(prompts), length, dtype=torch.float64, device=prompts.tokens.device)
        with clock.phase("sample"):
            found = sampled(self.sampler.greedy(), self.sampling_actor(), prompts, noise)
        with clock.phase("score"):
            return self.score(found, self.train)

    def score(self, rollout: Rollout, prompts: Prompts) -> Scored:
        """The reward of each response; what is not finite is noted, and 0."""
        try:
            scores = named_scores(self.reward, rollout, prompts.texts)
        except NotFinite as error:
            self.faults.note(str(error))
            nothing = torch.zeros(len(rollout), device=rollout.tokens.device)
            scores = dict.fromkeys(score_names(self.reward), nothing)
        total = scores.pop("score")
        return Scored(rollout=rollout, scores=total, parts=scores)

    def _draw(self, first: int, count: int, clock: Clock) -> Scored:
        with clock.phase("sample"):
            rollout = self.sample(self.prompts(first, count))
        with clock.phase("score"):
            return self.score(rollout, self.train)

    def _unequal(self, scored: Scored) -> int:
        """Groups of all ranks whose scores are not all equal."""
        groups = scored.rollout.group[self._unequal_rows(scored)].unique()
        return int(all_sum(torch.tensor(len(groups))))

    def _unequal_rows(self, scored: Scored) -> Tensor:
        """(B,) bool, the rows whose group has an advantage: what it is learnt from is not all equal."""
        rollout = scored.rollout
        scores = self.adjusted(scored.scores, rollout.ended, rollout.lengths)
        return unequal_groups(scores, rollout.group, rollout.mask.any(1))

    def _chosen(self, found: Sequence[Scored]) -> Scored:
        """This rank's groups: of those drawn, the first with unequal scores on all ranks, then the others.

        Every rank sees all rows: what is chosen does not depend on how many ranks there are, and each
        learns from equally many groups with nearly as many tokens.
        """
        ranks = gather_objects([scored.to(torch.device("cpu")) for scored in found])
        everything = joined([scored for rank in ranks for scored in rank])
        group, unequal = everything.rollout.group, self._unequal_rows(everything)
        numbers = group.unique()  # in the order in which they were drawn
        teaching = torch.isin(numbers, group[unequal])
        chosen = torch.cat([numbers[teaching], numbers[~teaching]])[: self.sizes.prompts].sort().values
        members = [(group == number).nonzero().squeeze(1) for number in chosen]
        lengths = everything.rollout.attention_mask.sum(1)
        sizes = [int(lengths[rows].sum()) for rows in members]
        own = dealt(sizes, self.runtime.rank, self.runtime.world_size)
        rows = torch.cat([members[number] for number in own])
        return everything.rows(rows).to(self.runtime.device)


def drawn_prompts(
    rows: PromptSet, first: int, count: int, *, samples: int, seed: int, runtime: Runtime
) -> PromptBatch:
    """This rank's share of prompts ``first`` … ``first + count − 1`` of the endless sequence of epochs.

    Each is repeated ``samples`` times; its group is its number in the sequence.
    """
    index = batch_indices(first, count, len(rows), seed)
    drawn = first + torch.arange(count)
    rank, ranks = runtime.rank, runtime.world_size
    return rows.batch(rank_share(index, rank, ranks), samples=samples, groups=rank_share(drawn, rank, ranks))


def named(rollout: Rollout, prompts: Prompts) -> Row:
    """Names the rows of a rollout, for a fault."""

    def name(row: int) -> str:
        one = rollout.rows(torch.tensor([row]))
        return f"the response to prompt {prompts.texts.prompts(one)[0][:80]!r} (row {int(one.index)})"

    return name


def joined(found: Sequence[Scored]) -> Scored:
    """All rows, padded to one width."""
    prompt = max(scored.rollout.prompt_mask.shape[1] for scored in found)
    response = max(scored.rollout.mask.shape[1] for scored in found)
    return Scored(
        rollout=concatenate([scored.rollout.widened(prompt, response) for scored in found]),
        scores=torch.cat([scored.scores for scored in found]),
        parts={name: torch.cat([scored.parts[name] for scored in found]) for name in found[0].parts},
    )
