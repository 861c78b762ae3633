"""An online algorithm: five choices and a schedule."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.algorithms.advantages import AdvantageEstimator, Advantages
from rlhf.algorithms.aggregation import Aggregation
from rlhf.algorithms.kl import KL
from rlhf.algorithms.policy_losses import PolicyLoss
from rlhf.algorithms.value_losses import ValueLoss
from rlhf.batch import Experience
from rlhf.ops.masking import Total
from rlhf.ops.shaping import missing_eos, token_rewards


@dataclass(kw_only=True, slots=True)
class PolicyGradient:
    """Advantage estimator × policy loss × KL × aggregation × critic loss, and how often to update."""

    advantage: AdvantageEstimator
    """How much better than expected each token was."""
    policy_loss: PolicyLoss
    """What the actor descends."""
    kl: KL
    """Where the KL to the reference enters, and how strongly."""
    aggregation: Aggregation
    """How much each token weighs, in the actor's loss and in the critic's."""
    value_loss: ValueLoss | None = None
    """What the critic descends; null for an estimator that reads no critic."""
    epochs: int = 4
    """Passes over each rollout."""
    minibatches: int = 1
    """Optimizer steps per pass."""
    missing_eos_score: float | None = -1.0
    """Score of a response that was cut off, whatever the reward says; null keeps the reward's."""

    def __post_init__(self) -> None:
        """Refuse choices that do not fit together.

        Raises:
            ValueError: a critic is missing or read by nobody, or a count is not positive.
        """
        estimator = type(self.advantage).__name__
        if self.advantage.needs_critic and self.value_loss is None:
            raise ValueError(f"PolicyGradient.value_loss must be given for {estimator}, got None")
        if self.value_loss is not None and not self.advantage.needs_critic:
            loss = type(self.value_loss).__name__
            raise ValueError(
                f"PolicyGradient.value_loss must be null for {estimator}, which reads no critic, got {loss}"
            )
        for name in ("epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"PolicyGradient.{name} must be at least 1, got {getattr(self, name)}")

    def shape(  # noqa: PLR0917  one argument for each symbol of D27 and D28
        self,
        scores: Tensor,
        ended: Tensor,
        old_logprobs: Tensor,
        ref_logprobs: Tensor,
        mask: Tensor,
        coef: float,
    ) -> Tensor:
        """Reward of each token: the score at the last one, the KL on all (numerics D27, D28).

        Args:
            scores: (B,) score of each response.
            ended: (B,) bool, the response ended by itself.
            old_logprobs: (B, T) log π_old of each token.
            ref_logprobs: (B, T) log π_ref of each token.
            mask: (B, T) bool.
            coef: the KL coefficient of this rollout.

        Returns:
            (B, T), detached, 0 on padding.
        """
        if self.missing_eos_score is not None:
            scores = missing_eos(scores, ended, self.missing_eos_score)
        penalty = -self.kl.reward(old_logprobs, ref_logprobs, mask, coef)
        return token_rewards(scores, penalty, mask).detach()

    def estimate(
        self, rewards: Tensor, values: Tensor | None, mask: Tensor, group: Tensor, total: Total
    ) -> Advantages:
        """Advantages of a whole rollout; see `AdvantageEstimator.__call__`."""
        return self.advantage(rewards, values, mask, group, total)

    def token_loss(self, logprobs: Tensor, experience: Experience, coef: float) -> Tensor:
        """Loss of the actor on each token, (B, T), 0 on padding.

        Args:
            logprobs: (B, T) log π of each token.
            experience: the rows to learn from.
            coef: the KL coefficient of this rollout.
        """
        mask = experience.rollout.mask
        loss = self.policy_loss(logprobs, experience.old_logprobs, experience.advantages, mask)
        loss = loss + self.kl.loss(logprobs, experience.ref_logprobs, mask, coef)
        return torch.where(mask, loss, 0.0)
