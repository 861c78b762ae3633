"""An online algorithm: five choices, a schedule, and what surrounds the loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.algorithms.advantages import AdvantageEstimator, Advantages
from rlhf.algorithms.aggregation import Aggregation
from rlhf.algorithms.corrections import Correction
from rlhf.algorithms.kl import KL
from rlhf.algorithms.policy_losses import AdaptiveKLPenalised, PolicyLoss
from rlhf.algorithms.shaping import SoftOverlong
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
    score_clip: float | None = None
    """Scores are clipped to ± this before anything else is done to them; null clips nothing."""
    overlong_penalty: SoftOverlong | None = None
    """What a response loses for coming near the length limit; null for nothing."""
    dynamic_sampling: int | None = None
    """Times that a rollout may draw prompts, to replace those whose responses have equal scores; null keeps
    what was drawn. The batch keeps its size: where too few are found, it is filled with the others."""
    overlong_filter: bool = False
    """Responses that were cut off leave the loss and its denominators; they stay in group statistics."""
    entropy_coef: float = 0.0
    """Weight of each token's entropy, subtracted from the loss, in advantages per nat."""
    ptx_coef: float = 0.0
    """γ: weight of −log π of each pretraining token in the actor's loss, in advantages per nat."""
    correction: Correction | None = None
    """Weights for a sampler that is not the scorer; null takes the two to be one."""
    max_old_kl: float | None = None
    """KL(π_old‖π) per token, in nats, above which a rollout's remaining updates are left out; null never."""
    critic_warmup: int = 0
    """Rollouts at the start in which the critic alone learns."""

    def __post_init__(self) -> None:
        """Refuse choices that do not fit together.

        Raises:
            ValueError: a critic is missing or read by nobody, an option can have no effect, or a number is
                out of range.
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
        for name in ("score_clip", "max_old_kl"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"PolicyGradient.{name} must be positive or null, got {value}")
        for name in ("entropy_coef", "ptx_coef", "critic_warmup"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"PolicyGradient.{name} must not be negative, got {getattr(self, name)}")
        if self.critic_warmup > 0 and self.value_loss is None:
            raise ValueError(
                f"PolicyGradient.critic_warmup must be 0 for {estimator}, which reads no critic, "
                f"got {self.critic_warmup}"
            )
        if self.dynamic_sampling is not None and self.dynamic_sampling < 1:
            raise ValueError(
                f"PolicyGradient.dynamic_sampling must be at least 1 or null, got {self.dynamic_sampling}"
            )
        self._expect_later_updates()

    def _expect_later_updates(self) -> None:
        """Refuse what compares with the old policy where every update starts from it."""
        if self.epochs * self.minibatches > 1:
            return
        loss = type(self.policy_loss).__name__
        if isinstance(self.policy_loss, AdaptiveKLPenalised):
            raise ValueError(
                f"PolicyGradient.epochs × minibatches must be at least 2 for {loss}, which is steered by "
                "how far the policy moved before the last update, got 1"
            )
        if self.max_old_kl is not None:
            raise ValueError(
                "PolicyGradient.max_old_kl must be null where epochs × minibatches is 1: there is no later "
                f"update to leave out, got {self.max_old_kl}"
            )

    def adjusted(self, scores: Tensor, ended: Tensor, lengths: Tensor) -> Tensor:
        """The scores that the policy learns from: clipped, replaced where cut off, lowered near the limit.

        Args:
            scores: (B,) score of each response, as the reward gave it.
            ended: (B,) bool, the response ended by itself.
            lengths: (B,) int64 tokens of each response.

        Returns:
            (B,) scores.
        """
        if self.score_clip is not None:
            scores = scores.clamp(-self.score_clip, self.score_clip)
        if self.missing_eos_score is not None:
            scores = missing_eos(scores, ended, self.missing_eos_score)
        return scores if self.overlong_penalty is None else scores + self.overlong_penalty(lengths)

    def shape(  # noqa: PLR0917  one argument for each symbol of D27 and D28
        self,
        scores: Tensor,
        ended: Tensor,
        old_logprobs: Tensor,
        ref_logprobs: Tensor | None,
        mask: Tensor,
        coef: float,
    ) -> Tensor:
        """Reward of each token: the adjusted score at the last one, the KL on all (numerics D27–D30).

        Args:
            scores: (B,) score of each response.
            ended: (B,) bool, the response ended by itself.
            old_logprobs: (B, T) log π_old of each token.
            ref_logprobs: (B, T) log π_ref of each token; None where ``kl`` reads none.
            mask: (B, T) bool.
            coef: the KL coefficient of this rollout.

        Returns:
            (B, T), detached, 0 on padding.
        """
        scores = self.adjusted(scores, ended, mask.sum(1))
        penalty = -self.kl.reward(old_logprobs, self._expected(ref_logprobs, old_logprobs), mask, coef)
        return token_rewards(scores, penalty, mask).detach()

    def estimate(  # noqa: PLR0917  as AdvantageEstimator
        self,
        rewards: Tensor,
        values: Tensor | None,
        mask: Tensor,
        group: Tensor,
        total: Total,
        baselines: Tensor | None = None,
    ) -> Advantages:
        """Advantages of a whole rollout; see `AdvantageEstimator.__call__`."""
        return self.advantage(rewards, values, mask, group, total, baselines)

    def kept(self, minibatch: Experience) -> Tensor:
        """(B, T) bool, the tokens of this rank's minibatch that are in the loss and its denominators."""
        rollout = minibatch.rollout
        mask = rollout.mask
        if self.correction is not None:
            mask = self.correction.kept(minibatch.old_logprobs, rollout.sampler_logprobs, mask)
        return mask & rollout.ended[:, None] if self.overlong_filter else mask

    def weights(self, minibatch: Experience, total: Total) -> Tensor:
        """How much each token of this rank's minibatch weighs in one optimizer step, (B, T) (numerics D39).

        What is kept out of the loss weighs 0 and is in no denominator.

        Raises:
            ValueError: nothing of the minibatch is left, on any rank.
        """
        return self.aggregation(self.kept(minibatch), total)

    def token_loss(
        self,
        logprobs: Tensor,
        experience: Experience,
        coef: float,
        *,
        penalty: float | None = None,
        entropies: Tensor | None = None,
        exact_kl: Tensor | None = None,
    ) -> Tensor:
        """Loss of the actor on each token, (B, T), 0 on padding.

        Args:
            logprobs: (B, T) log π of each token.
            experience: the rows to learn from, whole responses.
            coef: the KL coefficient of this rollout.
            penalty: the policy loss's own coefficient; None is its initial one.
            entropies: (B, T) entropy of the distribution of each token, with its gradient; read where
                ``entropy_coef`` is not 0.
            exact_kl: (B, T) KL to the reference over the whole vocabulary, with its gradient; read where
                ``kl.needs_exact``.

        Raises:
            ValueError: what the algorithm reads was not given.
        """
        mask = experience.rollout.mask
        loss = self._policy_terms(logprobs, experience, penalty)
        ref_logprobs = self._expected(experience.ref_logprobs, logprobs)
        loss = loss + self.kl.loss(logprobs, ref_logprobs, mask, coef)
        if self.kl.needs_exact:
            if exact_kl is None:
                raise ValueError(f"{type(self.kl).__name__} needs the KL over the whole vocabulary, got None")
            loss = loss + self.kl.exact_loss(exact_kl, mask, coef)
        if self.entropy_coef != 0:
            if entropies is None:
                raise ValueError("PolicyGradient.entropy_coef needs the entropies of the actor, got None")
            loss = loss - self.entropy_coef * torch.where(mask, entropies, 0.0)
        return torch.where(mask, loss, 0.0)

    def _expected(self, ref_logprobs: Tensor | None, instead: Tensor) -> Tensor:
        """The reference's log-probs; where nobody reads them, anything of their shape."""
        if ref_logprobs is None and self.kl.needs_reference:
            raise ValueError(f"{type(self.kl).__name__} needs the log-probs of a reference, got None")
        return instead if ref_logprobs is None else ref_logprobs

    def _policy_terms(self, logprobs: Tensor, experience: Experience, penalty: float | None) -> Tensor:
        """The policy loss under its importance correction, and its own penalty."""
        mask, old = experience.rollout.mask, experience.old_logprobs
        loss = self.policy_loss(logprobs, old, experience.advantages, mask)
        if self.correction is not None:
            loss = loss * self.correction(old, experience.rollout.sampler_logprobs, mask)
        coef = self.policy_loss.initial_penalty if penalty is None else penalty
        return loss + self.policy_loss.penalty(logprobs, old, mask, coef)

    @property
    def one_pass(self) -> bool:
        """Whether the loss of each token hangs on its own log-prob and entropy alone, so that the head can
        make its gradients at once.
        """
        return not (self.policy_loss.couples_tokens or self.kl.needs_exact)

    @property
    def starts_whole(self) -> bool:
        """Whether the first update is made of the whole rollout, log-probs and entropies being all it reads:
        then the pass that scored the rollout is the one that the update would make.
        """
        return self.minibatches == 1 and not self.kl.needs_exact

    def actor_learns(self, rollouts: int) -> bool:
        """Whether the actor is updated in the rollout after ``rollouts`` others (critic warm-up)."""
        return rollouts >= self.critic_warmup

    def stops(self, old_kl: float) -> bool:
        """Whether the remaining updates of a rollout are left out.

        Args:
            old_kl: mean over the minibatch's tokens, on all ranks, of KL(π_old‖π) at the update just done.
        """
        return self.max_old_kl is not None and old_kl > self.max_old_kl
