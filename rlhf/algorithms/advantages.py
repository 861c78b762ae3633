"""Advantage estimators: from rewards per token to how much better each token was than expected."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlhf.ops import masking
from rlhf.ops.baselines import group_deviation, group_std, leave_one_out
from rlhf.ops.masking import Total
from rlhf.ops.returns import gae, returns_to_go


@dataclass(kw_only=True, slots=True)
class Advantages:
    """What an estimator makes of one rollout."""

    advantages: Tensor  # (B, T), 0 on padding
    returns: Tensor | None  # (B, T) targets of the critic, 0 on padding; None without a critic


@dataclass(kw_only=True, slots=True)
class AdvantageEstimator(ABC):
    """How much better than expected each token was."""

    needs_critic: ClassVar[bool]  # reads the values of a critic
    needs_groups: ClassVar[bool]  # compares several responses to one prompt
    needs_greedy: ClassVar[bool] = False  # compares with the return of a greedy response to the prompt

    @abstractmethod
    def __call__(  # noqa: PLR0917  one argument for each thing that an estimator may read
        self,
        rewards: Tensor,
        values: Tensor | None,
        mask: Tensor,
        group: Tensor,
        total: Total,
        baselines: Tensor | None = None,
    ) -> Advantages:
        """Advantages of a whole rollout, before it is cut into minibatches.

        Args:
            rewards: (B, T) reward of each token.
            values: (B, T) critic's value of the state before each token; None without a critic.
            mask: (B, T) bool.
            group: (B,) int64, equal numbers are responses to the same prompt, all of them on this rank.
            total: sums over ranks.
            baselines: (B,) what was expected of each response before it was drawn: the return of a greedy
                response to its prompt where ``needs_greedy``, else the running mean of ``next_baseline``.
        """

    def next_baseline(self, baseline: float, mean_return: float, rollouts: int) -> float:
        """Running mean for the next rollout; 0 before the first, and for estimators that read none.

        Args:
            baseline: running mean of this rollout.
            mean_return: mean over its responses, on all ranks, of Σₜ rewards.
            rollouts: rollouts before this one.
        """
        return baseline


@dataclass(kw_only=True, slots=True)
class GAE(AdvantageEstimator):
    """PPO: generalized advantage estimation with a critic (Schulman et al. 2016; numerics D31–D33)."""

    needs_critic: ClassVar[bool] = True
    needs_groups: ClassVar[bool] = False

    gamma: float = 1.0
    """Discount per token, from 0 to 1."""
    lam: float = 0.95
    """λ: 1 is the return minus the value (no bias), 0 the one-step error (low variance)."""
    whiten: bool = True
    """Centre and scale the advantages over all tokens of the rollout, on all ranks; not the returns."""

    def __post_init__(self) -> None:
        """Refuse what is no discount.

        Raises:
            ValueError: gamma or lam lies outside [0, 1].
        """
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"GAE.{name} must be from 0 to 1, got {getattr(self, name)}")

    def __call__(  # noqa: PLR0917  one argument for each thing that an estimator may read
        self,
        rewards: Tensor,
        values: Tensor | None,
        mask: Tensor,
        group: Tensor,
        total: Total,
        baselines: Tensor | None = None,
    ) -> Advantages:
        """Advantages and returns; see `rlhf.ops.returns.gae`."""
        if values is None:
            raise ValueError("GAE needs the values of a critic, got None")
        advantages, returns = gae(rewards, values, mask, gamma=self.gamma, lam=self.lam)
        if self.whiten:
            advantages = masking.whiten(advantages, mask, total)
        return Advantages(advantages=advantages, returns=returns)


@dataclass(kw_only=True, slots=True)
class ResponseAdvantage(AdvantageEstimator):
    """One advantage for all tokens of a response, from the returns Rᵢ = Σₜ rewards alone."""

    needs_critic: ClassVar[bool] = False
    needs_groups: ClassVar[bool] = False

    @abstractmethod
    def of_responses(
        self, returns: Tensor, group: Tensor, counted: Tensor, baselines: Tensor | None
    ) -> Tensor:
        """(B,) float64 advantage of each response.

        Args:
            returns: (B,) float64.
            group: (B,) int64, equal numbers are responses to the same prompt.
            counted: (B,) bool, False for a response without a token; its return is not read.
            baselines: (B,) as in `AdvantageEstimator.__call__`.
        """

    def __call__(  # noqa: PLR0917  one argument for each thing that an estimator may read
        self,
        rewards: Tensor,
        values: Tensor | None,
        mask: Tensor,
        group: Tensor,
        total: Total,
        baselines: Tensor | None = None,
    ) -> Advantages:
        """The same advantage on every token of a response; no returns."""
        returns, counted = torch.where(mask, rewards, 0.0).double().sum(1), mask.any(1)
        advantages = self.of_responses(returns, group, counted, baselines)
        per_token = torch.where(mask, advantages[:, None], 0.0).to(rewards.dtype)
        return Advantages(advantages=per_token, returns=None)


@dataclass(kw_only=True, slots=True)
class NoBaseline(ResponseAdvantage):
    """REINFORCE: the response's return itself (Williams 1992; numerics D48)."""

    def of_responses(
        self, returns: Tensor, group: Tensor, counted: Tensor, baselines: Tensor | None
    ) -> Tensor:
        """Rᵢ."""
        return returns


@dataclass(kw_only=True, slots=True)
class MovingAverage(ResponseAdvantage):
    """REINFORCE: the return minus the mean return of past rollouts (Williams 1992; numerics D48)."""

    decay: float = 0.9
    """Weight of the past in each new mean, from 0 to 1; the first rollouts are averaged plainly."""

    def __post_init__(self) -> None:
        """Refuse a mean that would grow or never move.

        Raises:
            ValueError: decay lies outside [0, 1).
        """
        if not 0 <= self.decay < 1:
            raise ValueError(f"MovingAverage.decay must be at least 0 and below 1, got {self.decay}")

    def of_responses(
        self, returns: Tensor, group: Tensor, counted: Tensor, baselines: Tensor | None
    ) -> Tensor:
        """Rᵢ − b.

        Raises:
            ValueError: no baselines were given.
        """
        if baselines is None:
            raise ValueError("MovingAverage needs the mean return of past rollouts, got None")
        return returns - baselines

    def next_baseline(self, baseline: float, mean_return: float, rollouts: int) -> float:
        """b + max(1 − decay, 1/(rollouts + 1))·(R̄ − b), so that the first mean owes nothing to the 0.

        Args:
            baseline: b, running mean of this rollout.
            mean_return: R̄, mean over its responses, on all ranks, of Σₜ rewards.
            rollouts: rollouts before this one.
        """
        return baseline + max(1 - self.decay, 1 / (rollouts + 1)) * (mean_return - baseline)


@dataclass(kw_only=True, slots=True)
class GreedyBaseline(ResponseAdvantage):
    """ReMax: the return minus that of a greedy response to the prompt (Li et al. 2024; numerics D48).

    Both returns hold the KL where it is in the reward: at the optimum they are equal, and so is the gradient
    of every response 0. Against the score alone the advantage there would be a constant that is all noise.
    """

    needs_greedy: ClassVar[bool] = True

    def of_responses(
        self, returns: Tensor, group: Tensor, counted: Tensor, baselines: Tensor | None
    ) -> Tensor:
        """Rᵢ − R of the greedy response.

        Raises:
            ValueError: no baselines were given.
        """
        if baselines is None:
            raise ValueError("GreedyBaseline needs the return of a greedy response to each prompt, got None")
        return returns - baselines


@dataclass(kw_only=True, slots=True)
class WhitenedReturns(AdvantageEstimator):
    """REINFORCE++: the return to go, whitened over all tokens of the rollout (Hu et al. 2025).

        Aₜ = (Gₜ − mean G)/std G,   Gₜ = Σ_{s≥t} rewardₛ

    The moments are those of all tokens on all ranks (numerics D33), so unlike a division by the deviation
    of a group this scales the gradient and does not turn it.
    """

    needs_critic: ClassVar[bool] = False
    needs_groups: ClassVar[bool] = False

    def __call__(  # noqa: PLR0917  one argument for each thing that an estimator may read
        self,
        rewards: Tensor,
        values: Tensor | None,
        mask: Tensor,
        group: Tensor,
        total: Total,
        baselines: Tensor | None = None,
    ) -> Advantages:
        """Advantages without returns; see `rlhf.ops.masking.whiten`."""
        whitened = masking.whiten(returns_to_go(rewards, mask), mask, total)
        return Advantages(advantages=whitened.to(rewards.dtype), returns=None)


@dataclass(kw_only=True, slots=True)
class WhitenedGroupDeviation(AdvantageEstimator):
    """REINFORCE++-baseline: the return minus its group's mean, whitened over all tokens (Hu et al. 2025)."""

    needs_critic: ClassVar[bool] = False
    needs_groups: ClassVar[bool] = True

    def __call__(  # noqa: PLR0917  one argument for each thing that an estimator may read
        self,
        rewards: Tensor,
        values: Tensor | None,
        mask: Tensor,
        group: Tensor,
        total: Total,
        baselines: Tensor | None = None,
    ) -> Advantages:
        """The same advantage on every token of a response; no returns."""
        returns = torch.where(mask, rewards, 0.0).double().sum(1)
        deviation = group_deviation(returns, group, mask.any(1))[:, None].expand(mask.shape)  # (B, T)
        whitened = masking.whiten(deviation, mask, total)
        return Advantages(advantages=whitened.to(rewards.dtype), returns=None)


@dataclass(kw_only=True, slots=True)
class LeaveOneOut(ResponseAdvantage):
    """RLOO: the response's return minus the mean of its siblings' (Ahmadian et al. 2024; numerics D47)."""

    needs_groups: ClassVar[bool] = True

    def of_responses(
        self, returns: Tensor, group: Tensor, counted: Tensor, baselines: Tensor | None
    ) -> Tensor:
        """See `rlhf.ops.baselines.leave_one_out`."""
        return leave_one_out(returns, group, counted)


@dataclass(kw_only=True, slots=True)
class GroupRelative(ResponseAdvantage):
    """GRPO: the return minus its group's mean, over its standard deviation (DeepSeekMath; numerics D49)."""

    needs_groups: ClassVar[bool] = True

    divide_by_std: bool = True
    """Divide by the group's unbiased standard deviation; false is Dr. GRPO."""
    eps: float = 1e-4
    """Added to the standard deviation, in units of the score."""

    def __post_init__(self) -> None:
        """Refuse a division by zero.

        Raises:
            ValueError: eps is not positive.
        """
        if not self.eps > 0:
            raise ValueError(f"GroupRelative.eps must be positive, got {self.eps}")

    def of_responses(
        self, returns: Tensor, group: Tensor, counted: Tensor, baselines: Tensor | None
    ) -> Tensor:
        """See `group_deviation` and `group_std` in `rlhf.ops.baselines`."""
        deviation = group_deviation(returns, group, counted)
        if not self.divide_by_std:
            return deviation
        return deviation / (group_std(returns, group, counted) + self.eps)
