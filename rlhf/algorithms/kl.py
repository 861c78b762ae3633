"""Where the KL to the reference enters, and how strongly.

A component is read-only: the trainer holds the coefficient, passes it in, and asks for the next one after
each rollout. The combinations that mislead (k1 as a loss, k2 or k3 as a reward; numerics D17) do not exist.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlhf.ops.kl import k1, k2, k3


@dataclass(kw_only=True, slots=True)
class KL(ABC):
    """Placement and coefficient of the KL to the reference; adds nothing unless a subclass says so."""

    needs_reference: ClassVar[bool] = True  # reads log-probs of the reference
    needs_exact: ClassVar[bool] = False  # reads the KL over the whole vocabulary in the loss

    @property
    @abstractmethod
    def initial_coef(self) -> float:
        """Coefficient of the first rollout, in units of the score per nat."""

    def next_coef(self, coef: float, sequence_kl: float, rows: int) -> float:
        """Coefficient of the next rollout, once the updates of this one are done: the same.

        Args:
            coef: coefficient of this rollout.
            sequence_kl: mean over its responses, on all ranks, of Σₜ k1, in nats.
            rows: its responses on all ranks.
        """
        return coef

    def reward(self, old_logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, coef: float) -> Tensor:
        """What the KL adds to the reward of each token, (B, T), detached, 0 on padding: nothing."""
        return torch.zeros_like(old_logprobs)

    def loss(self, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, coef: float) -> Tensor:
        """What the KL adds to the loss of each token, (B, T), 0 on padding: nothing."""
        return torch.zeros_like(logprobs)

    def exact_loss(self, exact: Tensor, mask: Tensor, coef: float) -> Tensor:
        """What ``exact`` adds to the loss of each token, (B, T), 0 on padding: nothing.

        Args:
            exact: (B, T) KL(π‖π_ref) of the distribution that each token was drawn from, over the whole
                vocabulary and with its gradient.
            mask: (B, T) bool.
            coef: coefficient of this rollout.
        """
        return torch.zeros_like(exact)


@dataclass(kw_only=True, slots=True)
class NoKL(KL):
    """No KL: nothing holds the policy near the reference; where there is one, it is measured all the same."""

    needs_reference: ClassVar[bool] = False

    @property
    def initial_coef(self) -> float:
        """0."""
        return 0.0


@dataclass(kw_only=True, slots=True)
class FixedKL(KL):
    """A KL whose coefficient stays as it is."""

    coef: float = 0.0
    """Its weight, the same in every rollout."""

    def __post_init__(self) -> None:
        """Refuse to reward distance.

        Raises:
            ValueError: coef is negative.
        """
        if not self.coef >= 0:
            raise ValueError(f"{type(self).__name__}.coef must not be negative, got {self.coef}")

    @property
    def initial_coef(self) -> float:
        """The fixed coefficient."""
        return self.coef


@dataclass(kw_only=True, slots=True)
class KLInReward(FixedKL):
    """−β·k1 on every token's reward, the end token included: exactly E r − β·KL(π‖π_ref) (numerics D16)."""

    coef: float = 0.05
    """β, in units of the score per nat of KL summed over the response."""

    def reward(self, old_logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, coef: float) -> Tensor:
        """−coef·k1 of each token, (B, T), detached, 0 on padding."""
        return _charge(old_logprobs, ref_logprobs, mask, coef)


@dataclass(kw_only=True, slots=True)
class AdaptiveKLInReward(KL):
    """KL in the reward, with β steered so that the KL meets a target (Ziegler et al. 2019; numerics D19)."""

    coef: float = 0.15
    """β of the first rollout, in units of the score per nat of KL summed over the response."""
    target: float = 6.0
    """Wanted mean KL of a response, in nats."""
    horizon: int = 10_000
    """Responses over which β moves by at most 20 %; shorter is faster and less steady."""

    def __post_init__(self) -> None:
        """Refuse what cannot be steered.

        Raises:
            ValueError: a field is not positive.
        """
        for name in ("coef", "target", "horizon"):
            if not getattr(self, name) > 0:
                raise ValueError(f"AdaptiveKLInReward.{name} must be positive, got {getattr(self, name)}")

    @property
    def initial_coef(self) -> float:
        """The coefficient that the controller starts from."""
        return self.coef

    def next_coef(self, coef: float, sequence_kl: float, rows: int) -> float:
        """β·(1 + clip(KL/target − 1, −0.2, 0.2)·rows/horizon).

        Args:
            coef: coefficient of this rollout.
            sequence_kl: mean over its responses, on all ranks, of Σₜ k1, in nats.
            rows: its responses on all ranks.
        """
        error = min(max(sequence_kl / self.target - 1, -0.2), 0.2)
        return coef * (1 + error * rows / self.horizon)

    def reward(self, old_logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, coef: float) -> Tensor:
        """−coef·k1 of each token, (B, T), detached, 0 on padding."""
        return _charge(old_logprobs, ref_logprobs, mask, coef)


@dataclass(kw_only=True, slots=True)
class KLInLoss(FixedKL):
    """GRPO: coef·k3 on every token's loss (DeepSeekMath; numerics D17).

    Its gradient is that of the *forward* KL(π_ref‖π). On a single step the fixed point is
    coef·π_ref/(c − r), with c > max r so that it sums to 1; not π_ref·exp(r/coef)/Z.
    """

    coef: float = 0.04
    """Weight of k3 beside the policy loss, in units of the advantage per nat."""

    def loss(self, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, coef: float) -> Tensor:
        """coef·k3 of each token, (B, T), 0 on padding."""
        return coef * k3(torch.where(mask, logprobs, 0.0), torch.where(mask, ref_logprobs, 0.0))


@dataclass(kw_only=True, slots=True)
class K2InLoss(FixedKL):
    """coef·k2 on every token's loss (numerics D17).

    Its expected gradient is that of KL(π‖π_ref) of each token's own distribution, and leaves out that a
    token also decides how far from the reference the following ones will be. On a single step the fixed
    point is π_ref·exp(r/coef)/Z; on longer responses it is another: 1.23 nats away on the testbed.
    """

    coef: float = 0.01
    """Weight of k2 beside the policy loss, in units of the advantage per nat."""

    def loss(self, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, coef: float) -> Tensor:
        """coef·k2 of each token, (B, T), 0 on padding."""
        return coef * k2(torch.where(mask, logprobs, 0.0), torch.where(mask, ref_logprobs, 0.0))


@dataclass(kw_only=True, slots=True)
class ExactKLInLoss(FixedKL):
    """coef·KL over the whole vocabulary on every token's loss, without sampling noise (numerics D17).

    The gradient is what k2's is on average, so the fixed points are k2's too: π_ref·exp(r/coef)/Z on a
    single step, another one on longer responses. Costs the logits of actor and reference in every update.
    """

    needs_exact: ClassVar[bool] = True

    coef: float = 0.01
    """Weight of the KL beside the policy loss, in units of the advantage per nat."""

    def exact_loss(self, exact: Tensor, mask: Tensor, coef: float) -> Tensor:
        """coef·KL of each token, (B, T), 0 on padding."""
        return coef * torch.where(mask, exact, 0.0)


def _charge(old_logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, coef: float) -> Tensor:
    return torch.where(mask, -coef * k1(old_logprobs, ref_logprobs), 0.0).detach()
