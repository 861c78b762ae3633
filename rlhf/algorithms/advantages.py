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
from rlhf.ops.returns import gae


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

    @abstractmethod
    def __call__(
        self, rewards: Tensor, values: Tensor | None, mask: Tensor, group: Tensor, total: Total
    ) -> Advantages:
        """Advantages of a whole rollout, before it is cut into minibatches.

        Args:
            rewards: (B, T) reward of each token.
            values: (B, T) critic's value of the state before each token; None without a critic.
            mask: (B, T) bool.
            group: (B,) int64, equal numbers are responses to the same prompt, all of them on this rank.
            total: sums over ranks.
        """


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

    def __call__(
        self, rewards: Tensor, values: Tensor | None, mask: Tensor, group: Tensor, total: Total
    ) -> Advantages:
        """Advantages and returns; see `rlhf.ops.returns.gae`."""
        if values is None:
            raise ValueError("GAE needs the values of a critic, got None")
        advantages, returns = gae(rewards, values, mask, gamma=self.gamma, lam=self.lam)
        if self.whiten:
            advantages = masking.whiten(advantages, mask, total)
        return Advantages(advantages=advantages, returns=returns)


@dataclass(kw_only=True, slots=True)
class LeaveOneOut(AdvantageEstimator):
    """RLOO: the response's return minus the mean of its siblings' (Ahmadian et al. 2024; numerics D47)."""

    needs_critic: ClassVar[bool] = False
    needs_groups: ClassVar[bool] = True

    def __call__(
        self, rewards: Tensor, values: Tensor | None, mask: Tensor, group: Tensor, total: Total
    ) -> Advantages:
        """The same advantage on every token of a response; no returns."""
        scores, counted = _response_returns(rewards, mask)
        return _on_tokens(leave_one_out(scores, group, counted), mask, rewards.dtype)


@dataclass(kw_only=True, slots=True)
class GroupRelative(AdvantageEstimator):
    """GRPO: the return minus its group's mean, over its standard deviation (DeepSeekMath; numerics D49)."""

    needs_critic: ClassVar[bool] = False
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

    def __call__(
        self, rewards: Tensor, values: Tensor | None, mask: Tensor, group: Tensor, total: Total
    ) -> Advantages:
        """The same advantage on every token of a response; no returns."""
        scores, counted = _response_returns(rewards, mask)
        advantages = group_deviation(scores, group, counted)  # (B,)
        if self.divide_by_std:
            advantages = advantages / (group_std(scores, group, counted) + self.eps)
        return _on_tokens(advantages, mask, rewards.dtype)


def _response_returns(rewards: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) float64 sum of each response's rewards, and (B,) bool whether it has a token at all."""
    return torch.where(mask, rewards, 0.0).double().sum(1), mask.any(1)


def _on_tokens(advantages: Tensor, mask: Tensor, dtype: torch.dtype) -> Advantages:
    """One advantage per response, (B,), on each of its tokens."""
    per_token = torch.where(mask, advantages[:, None], 0.0).to(dtype)
    return Advantages(advantages=per_token, returns=None)
