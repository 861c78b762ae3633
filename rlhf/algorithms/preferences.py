"""Losses of a reward model, one number per prompt; most are means over comparisons of two responses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from rlhf.batch import Comparisons
from rlhf.ops.preference_losses import bradley_terry, centring
from rlhf.ops.ranking_losses import (
    best_response_loss,
    davidson_outcomes,
    outcome_loss,
    prompt_mean,
    rao_kupper_outcomes,
)


@dataclass(kw_only=True, slots=True)
class RewardLoss(ABC):
    """The loss of a prompt, from the scores of its responses."""

    @abstractmethod
    def prompts(self, scores: Tensor, compared: Comparisons) -> Tensor:
        """Loss of each prompt, (B,) in nats.

        Args:
            scores: (B, K) of each response; what stands where there is none is not read.
            compared: what was judged, at least one comparison a prompt.
        """

    def ties(self, gap: Tensor) -> Tensor | None:
        """(M,) probability of a tie at score differences ``gap``; None where the loss knows of none."""
        return None


@dataclass(kw_only=True, slots=True)
class PairLoss(RewardLoss):
    """The loss of one comparison; a prompt's is the mean over its comparisons (numerics D23)."""

    @abstractmethod
    def __call__(
        self, chosen: Tensor, rejected: Tensor, margin: Tensor, label: float | Tensor = 1.0
    ) -> Tensor:
        """Loss of each comparison, (M,) in nats.

        Args:
            chosen: (M,) scores of the responses named first.
            rejected: (M,) scores of the others.
            margin: (M,) by how much the first score should exceed the other; 0 when not given.
            label: μ, a number or (M,): probability that the first is better; ½ for a tie.
        """

    def prompts(self, scores: Tensor, compared: Comparisons) -> Tensor:
        """Mean over each prompt's comparisons."""
        prompt, first, second = compared.pairs
        margin, label = (values[prompt, first, second] for values in (compared.margin, compared.label))
        losses = self(scores[prompt, first], scores[prompt, second], margin, label)
        return prompt_mean(losses, prompt, len(scores))


@dataclass(kw_only=True, slots=True)
class BradleyTerry(PairLoss):
    """−μ·log σ(Δ − margin) − (1 − μ)·log σ(−Δ + margin); a tie has μ = ½ (numerics D22, D24)."""

    center: float = 0.0
    """η: weight of (s_chosen + s_rejected)², which pins the mean score; 0 leaves it free."""

    def __post_init__(self) -> None:
        """Refuse to push the scores away from 0.

        Raises:
            ValueError: center is negative.
        """
        if not self.center >= 0:
            raise ValueError(f"BradleyTerry.center must not be negative, got {self.center}")

    def __call__(
        self, chosen: Tensor, rejected: Tensor, margin: Tensor, label: float | Tensor = 1.0
    ) -> Tensor:
        """See `rlhf.ops.preference_losses`."""
        loss = bradley_terry(chosen, rejected, margin, label)
        return loss + self.center * centring(chosen, rejected)


@dataclass(kw_only=True, slots=True)
class TieLoss(PairLoss):
    """−log-likelihood of win, tie or loss, a tie being an outcome of its own (numerics D24).

    The tie probability is given and not learned: then the scale of the scores is that of Bradley–Terry, and
    nothing but the network is trained, saved and resumed.
    """

    tie_probability: float = 0.3
    """Probability that two equally good responses are called a tie, in (0, 1)."""

    def __post_init__(self) -> None:
        """Refuse what is no probability, or leaves two outcomes.

        Raises:
            ValueError: tie_probability is not between 0 and 1.
        """
        if not 0 < self.tie_probability < 1:
            raise ValueError(
                f"{type(self).__name__}.tie_probability must lie between 0 and 1, got {self.tie_probability}"
            )

    @abstractmethod
    def outcomes(self, gap: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(M,) each: log-probs of the first response's win, of a tie and of its loss at differences Δ."""

    def __call__(
        self, chosen: Tensor, rejected: Tensor, margin: Tensor, label: float | Tensor = 1.0
    ) -> Tensor:
        """See `rlhf.ops.ranking_losses.outcome_loss`."""
        return outcome_loss(self.outcomes(chosen - rejected - margin), label)

    def ties(self, gap: Tensor) -> Tensor | None:
        """(M,) probability of a tie."""
        return self.outcomes(gap)[1].exp()


@dataclass(kw_only=True, slots=True)
class RaoKupper(TieLoss):
    """Bradley–Terry where differences below a threshold end in a tie (Rao and Kupper 1967; numerics D24)."""

    def outcomes(self, gap: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `rlhf.ops.ranking_losses.rao_kupper_outcomes`."""
        return rao_kupper_outcomes(gap, tie_probability=self.tie_probability)


@dataclass(kw_only=True, slots=True)
class Davidson(TieLoss):
    """Bradley–Terry with a third outcome, P(tie) ∝ √(P(win)·P(loss)) (Davidson 1970; numerics D24).

    The most likely tie probability is the one at which ties are as often expected, ``reward/ties_expected``,
    as judged, ``reward/ties_judged``.
    """

    def outcomes(self, gap: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `rlhf.ops.ranking_losses.davidson_outcomes`."""
        return davidson_outcomes(gap, tie_probability=self.tie_probability)


@dataclass(kw_only=True, slots=True)
class BestResponse(RewardLoss):
    """−log softmax of the best of a prompt's responses: not the likelihood of a ranking (numerics D23)."""

    def prompts(self, scores: Tensor, compared: Comparisons) -> Tensor:
        """See `rlhf.ops.ranking_losses.best_response_loss`."""
        return best_response_loss(scores, *compared.best())
