"""What a preference loss is measured on: pairs, or single labelled responses with their baseline."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlhf.algorithms.preference_losses import KTO, PairedLoss, PreferenceLoss, Responses
from rlhf.batch import LabelledBatch, PreferenceBatch, Rows, SequenceBatch
from rlhf.data.encoding import Encoded
from rlhf.data.loaded import LabelledSet, PreferenceSet
from rlhf.distributed.collectives import all_sum
from rlhf.trainers.micro_batches import Cut

Policy = Callable[..., Any]
"""An actor, or an engine around one."""


@dataclass(kw_only=True, slots=True)
class Examples(Rows):
    """Rows of feedback, and what the reference says of their texts."""

    texts: PreferenceBatch | LabelledBatch
    reference: Tensor | None  # (B, 2) log π_ref of the two responses of each row; None without a reference

    @property
    def tokens(self) -> int:
        """Of both texts of all rows, padding not counted."""
        texts = self.texts
        sides = (
            (texts.chosen, texts.rejected)
            if isinstance(texts, PreferenceBatch)
            else (texts.text, texts.mismatched)
        )
        return sum(int(side.lengths.sum()) for side in sides)


@dataclass(kw_only=True, slots=True)
class Measured:
    """Of a micro-batch."""

    loss: Tensor
    """(b,) with gradient."""
    logprobs: dict[str, Tensor]
    """(b,) log-probs of responses by name, to be looked at."""
    numbers: dict[str, tuple[Tensor, Tensor | None]]
    """Metrics: (b,) values, and which of them count."""


def feedback_of(rows: PreferenceSet | LabelledSet, loss: PreferenceLoss, sft_coef: float) -> Feedback:
    """The rows under a loss that reads such rows."""
    if isinstance(loss, KTO):
        return LabelledFeedback(rows, loss, sft_coef)
    return PairFeedback(rows, loss, sft_coef)


class Feedback(ABC):
    """Rows with two texts each, and the loss that they are measured by."""

    row: str
    """What messages call a row."""

    def __init__(
        self, rows: PreferenceSet | LabelledSet, loss: PreferenceLoss, sft_coef: float = 0.0
    ) -> None:
        """Take the rows.

        Args:
            rows: the data.
            loss: of a row.
            sft_coef: nats of loss for a nat per token of −log π of a good response.
        """
        self.rows, self.loss, self.sft_coef = rows, loss, sft_coef
        self.reference: Tensor | None = None  # (N, 2) log π_ref of both texts of each row

    def __len__(self) -> int:
        return len(self.rows)

    @property
    @abstractmethod
    def texts(self) -> list[Encoded]:
        """Of all rows: the first text of each, then the second of each."""

    def examples(self, index: Tensor, device: torch.device) -> Examples:
        """The rows that ``index`` (B,) names."""
        reference = None if self.reference is None else self.reference[index]
        return Examples(texts=self.rows.batch(index), reference=reference).to(device)

    @abstractmethod
    def lengths(self, batch: Examples, *, packed: bool) -> Tensor:
        """(B,) tokens that each row takes in a pass with gradient."""

    def baseline(self, policy: Policy, cut: Cut, batches: Iterable[tuple[Examples, Tensor]]) -> Tensor:
        """() what rewards are compared with, over the rows of all ranks: nothing, 0. Every rank calls it.

        Args:
            policy: an actor or an engine around one.
            cut: which rows share a pass.
            batches: this rank's rows, and which of them are real, (B,) bool.
        """
        return torch.zeros(())

    @abstractmethod
    def measure(self, policy: Policy, part: Examples, baseline: Tensor) -> Measured:
        """Loss and metrics of a micro-batch."""

    def imitation(self, good: Responses) -> Tensor:
        """(b,) what the SFT term adds to the loss of these responses."""
        return -self.sft_coef * good.mean_logprobs


class PairFeedback(Feedback):
    """A chosen and a rejected response to each prompt, in one forward."""

    row = "pair"
    rows: PreferenceSet
    loss: PairedLoss

    @property
    def texts(self) -> list[Encoded]:
        """All chosen ones, then all rejected ones."""
        return self.rows.chosen + self.rows.rejected

    def lengths(self, batch: Examples, *, packed: bool) -> Tensor:
        """Of both sides, the shorter one padded unless rows are packed."""
        assert isinstance(batch.texts, PreferenceBatch)
        return pair_lengths(batch.texts, packed=packed)

    def measure(self, policy: Policy, part: Examples, baseline: Tensor) -> Measured:
        """Both sides of each pair."""
        assert isinstance(part.texts, PreferenceBatch)
        both = stack(part.texts.chosen, part.texts.rejected).trimmed()
        reference = None if part.reference is None else part.reference.T.flatten()
        found = Responses(token_logprobs=response_logprobs(policy, both), mask=both.mask, reference=reference)
        halves = torch.arange(len(found), device=both.mask.device).chunk(2)
        chosen, rejected = (found.rows(half) for half in halves)
        better, worse = (self.loss.reward(side).detach() for side in (chosen, rejected))
        return Measured(
            loss=self.loss(chosen, rejected) + self.imitation(chosen),
            logprobs={"chosen log-prob": chosen.logprobs, "rejected log-prob": rejected.logprobs},
            numbers={
                "reward/accuracy": ((better > worse).double(), None),
                "reward/margin": (better - worse, None),
                "reward/chosen": (better, None),
                "reward/rejected": (worse, None),
                "actor/chosen_logprob": (chosen.logprobs, None),
                "actor/rejected_logprob": (rejected.logprobs, None),
            },
        )


class LabelledFeedback(Feedback):
    """Single responses; the baseline is measured on prompts beside responses to other prompts."""

    row = "response"
    rows: LabelledSet
    loss: KTO

    @property
    def texts(self) -> list[Encoded]:
        """All rows, then all mismatched ones."""
        return self.rows.texts + self.rows.mismatched

    def lengths(self, batch: Examples, *, packed: bool) -> Tensor:
        """Of the row's own text."""
        assert isinstance(batch.texts, LabelledBatch)
        return batch.texts.text.lengths

    @torch.no_grad()
    def baseline(self, policy: Policy, cut: Cut, batches: Iterable[tuple[Examples, Tensor]]) -> Tensor:
        """z, from the mean log-ratio of all mismatched rows."""
        sums = torch.zeros(2, dtype=torch.float64)  # log-ratios, rows
        for batch, real in batches:
            assert isinstance(batch.texts, LabelledBatch)
            for rows in cut(batch.texts.mismatched.lengths):
                part = batch.rows(rows)
                ratios = self._responses(policy, part, side=1).log_ratios
                ratios = ratios[real[rows].to(ratios.device)]
                sums += torch.tensor([float(ratios.double().sum()), len(ratios)], dtype=torch.float64)
        total, count = all_sum(sums)
        return self.loss.baseline(total / count)

    def measure(self, policy: Policy, part: Examples, baseline: Tensor) -> Measured:
        """Each response against the baseline."""
        assert isinstance(part.texts, LabelledBatch)
        good, found = part.texts.desirable, self._responses(policy, part, side=0)
        z = baseline.to(found.logprobs)
        reward = self.loss.reward(found).detach()
        return Measured(
            loss=self.loss(found, good, z) + torch.where(good, self.imitation(found), 0.0),
            logprobs={"log-prob": found.logprobs},
            numbers={
                "reward/accuracy": (((reward > z) == good).double(), None),
                "reward/baseline": (z.expand_as(reward), None),
                "reward/chosen": (reward, good),
                "reward/rejected": (reward, ~good),
                "actor/chosen_logprob": (found.logprobs, good),
                "actor/rejected_logprob": (found.logprobs, ~good),
            },
        )

    def _responses(self, policy: Policy, part: Examples, *, side: int) -> Responses:
        assert isinstance(part.texts, LabelledBatch)
        texts = (part.texts.text, part.texts.mismatched)[side].trimmed()
        assert part.reference is not None
        return Responses(
            token_logprobs=response_logprobs(policy, texts),
            mask=texts.mask,
            reference=part.reference[:, side],
        )


def response_logprobs(policy: Policy, texts: SequenceBatch) -> Tensor:
    """(b, l) float32 log π of each token of the responses, 0 elsewhere; column 0 has nothing before it."""
    wanted = texts.mask[:, 1:]  # the head sees no prompt
    return pad(policy(texts.tokens, texts.attention_mask, 1, wanted=wanted).logprobs, (1, 0))


def pair_lengths(pairs: PreferenceBatch, *, packed: bool) -> Tensor:
    """(B,) tokens that each pair takes: of both sides, the shorter one padded unless rows are packed."""
    chosen, rejected = pairs.chosen.lengths, pairs.rejected.lengths
    return chosen + rejected if packed else 2 * torch.maximum(chosen, rejected)


def stack(first: SequenceBatch, second: SequenceBatch) -> SequenceBatch:
    """The rows of both, right-padded to a common width."""
    width = max(first.tokens.shape[1], second.tokens.shape[1])

    def join(name: str) -> Tensor:
        parts = [getattr(batch, name) for batch in (first, second)]
        return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])

    return SequenceBatch(tokens=join("tokens"), attention_mask=join("attention_mask"), mask=join("mask"))
