"""Policy losses: what the actor descends, one number per token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.ops import policy_losses
from rlhf.ops.policy_losses import (
    approx_kl,
    clipped_surrogate,
    clipped_weight,
    reinforce,
    sequence_log_ratio,
    unclipped_surrogate,
)


@dataclass(kw_only=True, slots=True)
class PolicyLoss(ABC):
    """The loss of one token of the actor."""

    @abstractmethod
    def __call__(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """Loss of each token, (B, T), 0 on padding.

        Args:
            logprobs: (B, T) log π of each token.
            old_logprobs: (B, T) log π_old of each token.
            advantages: (B, T).
            mask: (B, T) bool.
        """

    def clipped(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Where the ratio is out of bounds, (B, T) bool: nowhere.

        Args:
            logprobs: (B, T) log π of each token.
            old_logprobs: (B, T) log π_old of each token.
            advantages: (B, T).
            mask: (B, T) bool; None where every token is real.
        """
        return torch.zeros_like(logprobs, dtype=torch.bool)

    @property
    def couples_tokens(self) -> bool:
        """Whether the loss of a token depends on other tokens' log-probs."""
        return False

    @property
    def initial_penalty(self) -> float:
        """Coefficient of the KL(π_old‖π) in the loss of the first rollout, in advantages per nat: none."""
        return 0.0

    def next_penalty(self, penalty: float, old_kl: float) -> float:
        """Coefficient of the next rollout, once the updates of this one are done: the same.

        Args:
            penalty: coefficient of this rollout.
            old_kl: mean over tokens, on all ranks, of KL(π_old‖π) at its last update, in nats.
        """
        return penalty

    def penalty(self, logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, coef: float) -> Tensor:
        """What the distance from the old policy adds to the loss of each token, (B, T): nothing."""
        return torch.zeros_like(logprobs)


@dataclass(kw_only=True, slots=True)
class Clipped(PolicyLoss):
    """PPO: the clipped surrogate (Schulman et al. 2017; unequal clips: DAPO; numerics D38)."""

    clip_low: float = 0.2
    """How far the ratio π/π_old may fall below 1 while that still pays, from 0 to 1."""
    clip_high: float = 0.2
    """How far the ratio may rise above 1 while that still pays."""
    dual_clip: float | None = None
    """Where A < 0, the ratio beyond which the loss stops rising, above 1 + clip_high; null for no bound."""

    def __post_init__(self) -> None:
        """Refuse bounds that exclude the ratio 1.

        Raises:
            ValueError: a clip is negative, the lower one exceeds 1, or the dual one lies within the others.
        """
        _expect_clips(self)
        if self.dual_clip is not None and not self.dual_clip > 1 + self.clip_high:
            raise ValueError(
                f"Clipped.dual_clip must be above 1 + clip_high ({1 + self.clip_high}), got {self.dual_clip}"
            )

    def __call__(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """See `rlhf.ops.policy_losses.clipped_surrogate`."""
        return clipped_surrogate(
            logprobs,
            old_logprobs,
            advantages,
            mask,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            dual_clip=self.dual_clip,
        )

    def clipped(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Where the loss has no gradient; see `rlhf.ops.policy_losses.clipped`."""
        return policy_losses.clipped(
            logprobs,
            old_logprobs,
            advantages,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            dual_clip=self.dual_clip,
        )


@dataclass(kw_only=True, slots=True)
class Reinforce(PolicyLoss):
    """REINFORCE and RLOO: −A·log π, unbiased at the first update of a rollout (Williams 1992)."""

    def __call__(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """See `rlhf.ops.policy_losses.reinforce`; the old log-probabilities are not read."""
        return reinforce(logprobs, advantages, mask)


@dataclass(kw_only=True, slots=True)
class SequenceClipped(PolicyLoss):
    """GSPO: the clipped surrogate of the whole response's ratio (Zheng et al. 2025; numerics D51).

    The ratio is the geometric mean over the response, which moves far less than a token's, and the
    whole response is clipped or none of it. With aggregation sequence_mean it is the paper's objective.
    """

    clip_low: float = 3e-4
    """How far the response's ratio may fall below 1 while that still pays, from 0 to 1."""
    clip_high: float = 4e-4
    """How far it may rise above 1."""

    def __post_init__(self) -> None:
        """Refuse bounds that exclude the ratio 1.

        Raises:
            ValueError: a clip is negative, or the lower one exceeds 1.
        """
        _expect_clips(self)

    @property
    def couples_tokens(self) -> bool:
        """The ratio is that of the sequence."""
        return True

    def __call__(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """See `sequence_log_ratio` and `clipped_surrogate` in `rlhf.ops.policy_losses`; rows are whole."""
        log_ratio = sequence_log_ratio(logprobs, old_logprobs, mask)
        return clipped_surrogate(
            log_ratio,
            torch.zeros_like(log_ratio),
            advantages,
            mask,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
        )

    def clipped(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Where the loss has no gradient: on all tokens of a response, or on none."""
        real = torch.ones_like(logprobs, dtype=torch.bool) if mask is None else mask
        log_ratio = sequence_log_ratio(logprobs, old_logprobs, real)
        return policy_losses.clipped(
            log_ratio,
            torch.zeros_like(log_ratio),
            advantages,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
        )


@dataclass(kw_only=True, slots=True)
class ClippedWeight(PolicyLoss):
    """CISPO: REINFORCE with a bounded, detached importance weight (MiniMax-M1, 2025)."""

    clip_low: float = 1.0
    """How far the weight may fall below 1, from 0 to 1; at 1 there is no lower bound, as in the paper."""
    clip_high: float = 4.0
    """How far the weight may rise above 1; the paper tunes it and prints no value."""

    def __post_init__(self) -> None:
        """Refuse bounds that exclude the weight 1.

        Raises:
            ValueError: a clip is negative, or the lower one exceeds 1.
        """
        _expect_clips(self)

    def __call__(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """See `rlhf.ops.policy_losses.clipped_weight`."""
        return clipped_weight(
            logprobs, old_logprobs, advantages, mask, low=1 - self.clip_low, high=1 + self.clip_high
        )

    def clipped(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Where the weight stands at a bound; the gradient is there all the same."""
        ratio = (logprobs - old_logprobs).exp()
        return (ratio < 1 - self.clip_low) | (ratio > 1 + self.clip_high)


@dataclass(kw_only=True, slots=True)
class KLPenalised(PolicyLoss):
    """PPO with a penalty in place of the clip, −ρ·A + β·KL(π_old‖π) (Schulman et al. 2017, eq. 8)."""

    coef: float = 1.0
    """β, in units of the advantage per nat; the paper tries 0.3 to 10."""

    def __post_init__(self) -> None:
        """Refuse a policy that nothing holds.

        Raises:
            ValueError: coef is not positive.
        """
        if not self.coef > 0:
            raise ValueError(f"KLPenalised.coef must be positive, got {self.coef}")

    def __call__(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """The surrogate without the penalty; see `rlhf.ops.policy_losses.unclipped_surrogate`."""
        return unclipped_surrogate(logprobs, old_logprobs, advantages, mask)

    @property
    def initial_penalty(self) -> float:
        """β of the first rollout."""
        return self.coef

    def penalty(self, logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, coef: float) -> Tensor:
        """β·((ρ − 1) − log ρ): on samples of π_old, unbiased in value and gradient for KL(π_old‖π)."""
        return coef * approx_kl(torch.where(mask, logprobs, 0.0), torch.where(mask, old_logprobs, 0.0))


@dataclass(kw_only=True, slots=True)
class AdaptiveKLPenalised(KLPenalised):
    """PPO with a penalty whose β doubles or halves to meet a KL target (Schulman et al. 2017, section 4)."""

    coef: float = 1.0
    """β of the first rollout, in units of the advantage per nat."""
    target: float = 0.01
    """Wanted KL(π_old‖π) per token at the last update of a rollout, in nats."""

    def __post_init__(self) -> None:
        """Refuse what cannot be steered.

        Raises:
            ValueError: a field is not positive.
        """
        for name in ("coef", "target"):
            if not getattr(self, name) > 0:
                raise ValueError(f"AdaptiveKLPenalised.{name} must be positive, got {getattr(self, name)}")

    def next_penalty(self, penalty: float, old_kl: float) -> float:
        """β/2 where the KL was below target/1.5, 2·β where it was above 1.5·target, else β.

        Within a factor of 1024 of ``coef``: a policy that hardly moves for long would leave a β that cannot
        come back in time.

        Args:
            penalty: β, coefficient of this rollout.
            old_kl: mean over tokens, on all ranks, of KL(π_old‖π) at its last update, in nats.
        """
        if old_kl < self.target / 1.5:
            return max(penalty / 2, self.coef / 1024)
        return min(2 * penalty, self.coef * 1024) if old_kl > 1.5 * self.target else penalty


def _expect_clips(loss: Clipped | SequenceClipped | ClippedWeight) -> None:
    """Refuse bounds that exclude 1."""
    name = type(loss).__name__
    if not 0 <= loss.clip_low <= 1:
        raise ValueError(f"{name}.clip_low must be from 0 to 1, got {loss.clip_low}")
    if not loss.clip_high >= 0:
        raise ValueError(f"{name}.clip_high must not be negative, got {loss.clip_high}")
