"""Losses of offline preference optimisation, one number per pair or per labelled response.

A response's log-prob is the sum over its tokens, the end token included and the prompt not (numerics D52).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlhf.batch import Rows
from rlhf.ops.preference_losses import (
    bradley_terry,
    hinge,
    log_odds,
    prospect,
    squared_gap,
    unlikelihood,
)


@dataclass(kw_only=True, slots=True)
class Responses(Rows):
    """What the policy, and the reference where there is one, say of responses."""

    token_logprobs: Tensor  # (B, L) log π of each token, 0 where the mask is False
    mask: Tensor  # (B, L) bool, True on the response's tokens, at least one a row
    reference: Tensor | None = None  # (B,) log π_ref of the response

    @property
    def logprobs(self) -> Tensor:
        """(B,) log π of the response: the sum over its tokens."""
        return torch.where(self.mask, self.token_logprobs, 0.0).sum(1)

    @property
    def mean_logprobs(self) -> Tensor:
        """(B,) nats per token."""
        return self.logprobs / self.mask.sum(1)

    @property
    def log_ratios(self) -> Tensor:
        """(B,) log π − log π_ref.

        Raises:
            ValueError: no reference was measured.
        """
        if self.reference is None:
            raise ValueError(
                "Responses.reference must be given for a loss that reads the reference, got None"
            )
        return self.logprobs - self.reference


@dataclass(kw_only=True, slots=True)
class PreferenceLoss(ABC):
    """The loss of an offline method."""

    needs_reference: ClassVar[bool] = True  # reads log-probs of the reference
    reads_pairs: ClassVar[bool] = True  # of a chosen and a rejected response; else single labelled ones

    @abstractmethod
    def reward(self, responses: Responses) -> Tensor:
        """(B,) what the loss takes the policy to think of each response; ranks the two of a pair."""


@dataclass(kw_only=True, slots=True)
class PairedLoss(PreferenceLoss):
    """The loss of a chosen and a rejected response."""

    @abstractmethod
    def __call__(self, chosen: Responses, rejected: Responses) -> Tensor:
        """(B,) loss of each pair."""


@dataclass(kw_only=True, slots=True)
class DPO(PairedLoss):
    """Direct preference optimisation: −log σ(β·h) (Rafailov et al. 2023, eq. 7; numerics D52).

    h is the log-ratio log π − log π_ref of the chosen response minus that of the other.
    """

    beta: float = 0.1
    """β: what a nat of log π/π_ref is worth in units of the reward; smaller lets the policy go further."""

    def __post_init__(self) -> None:
        _expect_positive(self, "beta")

    def reward(self, responses: Responses) -> Tensor:
        """β·(log π − log π_ref), the reward that the policy is optimal for, up to a number per prompt."""
        return self.beta * responses.log_ratios

    def __call__(self, chosen: Responses, rejected: Responses) -> Tensor:
        """See `rlhf.ops.preference_losses.bradley_terry`."""
        better, worse = self.reward(chosen), self.reward(rejected)
        return bradley_terry(better, worse, torch.zeros_like(better))


@dataclass(kw_only=True, slots=True)
class ConservativeDPO(PairedLoss):
    """DPO for labels that are wrong with probability ε: −(1 − ε)·log σ(β·h) − ε·log σ(−β·h) (Mitchell 2023).

    Labels that always agree end at σ(β·h) = 1 − ε, not at infinity (numerics D53).
    """

    beta: float = 0.1
    """β: what a nat of log π/π_ref is worth in units of the reward."""
    label_smoothing: float = 0.1
    """ε: probability that the two responses of a pair stand the wrong way round; below ½."""

    def __post_init__(self) -> None:
        _expect_positive(self, "beta")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"ConservativeDPO.label_smoothing must be in [0, 0.5), got {self.label_smoothing}"
            )

    def reward(self, responses: Responses) -> Tensor:
        """β·(log π − log π_ref)."""
        return self.beta * responses.log_ratios

    def __call__(self, chosen: Responses, rejected: Responses) -> Tensor:
        """See `rlhf.ops.preference_losses.bradley_terry`."""
        better, worse = self.reward(chosen), self.reward(rejected)
        return bradley_terry(better, worse, torch.zeros_like(better), label=1 - self.label_smoothing)


@dataclass(kw_only=True, slots=True)
class IPO(PairedLoss):
    """Identity preference optimisation: (h − 1/(2τ))², h as in DPO (Azar et al. 2023; numerics D53)."""

    tau: float = 0.1
    """τ: strength of the KL to the reference; the log-ratios of a pair end at most 1/(2τ) nats apart."""

    def __post_init__(self) -> None:
        _expect_positive(self, "tau")

    def reward(self, responses: Responses) -> Tensor:
        """τ·(log π − log π_ref)."""
        return self.tau * responses.log_ratios

    def __call__(self, chosen: Responses, rejected: Responses) -> Tensor:
        """See `rlhf.ops.preference_losses.squared_gap`."""
        return squared_gap(chosen.log_ratios - rejected.log_ratios, tau=self.tau)


@dataclass(kw_only=True, slots=True)
class Hinge(PairedLoss):
    """max(0, margin − β·h), h as in DPO: SLiC with a reference (Zhao et al. 2023; Liu et al. 2024)."""

    beta: float = 0.1
    """β: what a nat of log π/π_ref is worth in units of the reward."""
    margin: float = 1.0
    """By how much the chosen reward shall exceed the other; beyond it a pair has no gradient."""

    def __post_init__(self) -> None:
        _expect_positive(self, "beta", "margin")

    def reward(self, responses: Responses) -> Tensor:
        """β·(log π − log π_ref)."""
        return self.beta * responses.log_ratios

    def __call__(self, chosen: Responses, rejected: Responses) -> Tensor:
        """See `rlhf.ops.preference_losses.hinge`."""
        return hinge(self.reward(chosen) - self.reward(rejected), margin=self.margin)


@dataclass(kw_only=True, slots=True)
class ORPO(PairedLoss):
    """−log π(y_w)/|y_w| − coef·log σ(log odds(y_w) − log odds(y_l)) (Hong et al. 2024, eq. 6 and 7).

    odds = p/(1 − p), p the geometric mean of the probabilities of a response's tokens. No reference.
    """

    needs_reference: ClassVar[bool] = False

    coef: float = 0.1
    """λ: weight of the odds ratio beside the likelihood of the chosen response."""

    def __post_init__(self) -> None:
        _expect_positive(self, "coef")

    def reward(self, responses: Responses) -> Tensor:
        """log odds of the response's mean token."""
        return log_odds(responses.mean_logprobs)

    def __call__(self, chosen: Responses, rejected: Responses) -> Tensor:
        """See `rlhf.ops.preference_losses.log_odds`."""
        better, worse = self.reward(chosen), self.reward(rejected)
        odds_ratio = bradley_terry(better, worse, torch.zeros_like(better))
        return -chosen.mean_logprobs + self.coef * odds_ratio


@dataclass(kw_only=True, slots=True)
class SimPO(PairedLoss):
    """−log σ(β·log π(y_w)/|y_w| − β·log π(y_l)/|y_l| − margin) (Meng et al. 2024, eq. 6). No reference."""

    needs_reference: ClassVar[bool] = False

    beta: float = 2.0
    """β: what a nat per token is worth in units of the reward."""
    margin: float = 1.0
    """γ: by how much the chosen reward should exceed the other; the paper takes β/2 or less."""

    def __post_init__(self) -> None:
        _expect_positive(self, "beta")
        _expect_not_negative(self, "margin")

    def reward(self, responses: Responses) -> Tensor:
        """β·log π/|y|."""
        return self.beta * responses.mean_logprobs

    def __call__(self, chosen: Responses, rejected: Responses) -> Tensor:
        """See `rlhf.ops.preference_losses.bradley_terry`."""
        better, worse = self.reward(chosen), self.reward(rejected)
        return bradley_terry(better, worse, torch.full_like(better, self.margin))


@dataclass(kw_only=True, slots=True)
class Unlikelihood(PairedLoss):
    """−log π(y_w) − coef·Σₜ log(1 − π(y_l,t)) (Welleck et al. 2020). No reference."""

    needs_reference: ClassVar[bool] = False

    coef: float = 1.0
    """α: weight of what is pushed away."""

    def __post_init__(self) -> None:
        _expect_positive(self, "coef")

    def reward(self, responses: Responses) -> Tensor:
        """log π of the response."""
        return responses.logprobs

    def __call__(self, chosen: Responses, rejected: Responses) -> Tensor:
        """See `rlhf.ops.preference_losses.unlikelihood`."""
        pushed = unlikelihood(rejected.token_logprobs, rejected.mask)
        return -chosen.logprobs + self.coef * pushed


@dataclass(kw_only=True, slots=True)
class PreferredFT(PairedLoss):
    """−log π(y_w): likelihood of the chosen responses; the others are only measured. No reference."""

    needs_reference: ClassVar[bool] = False

    def reward(self, responses: Responses) -> Tensor:
        """log π of the response."""
        return responses.logprobs

    def __call__(self, chosen: Responses, rejected: Responses) -> Tensor:
        """Nats per chosen response."""
        return -chosen.logprobs


@dataclass(kw_only=True, slots=True)
class KTO(PreferenceLoss):
    """Kahneman–Tversky optimisation, from responses labelled good or bad (Ethayarajh et al. 2024, eq. 8).

        λ_D·(1 − σ(r − z))  where good,  λ_U·(1 − σ(z − r))  where bad;  r = β·log π/π_ref

    z = β·max(0, mean log-ratio of prompts beside responses to other prompts), over the whole batch.
    """

    reads_pairs: ClassVar[bool] = False

    beta: float = 0.1
    """β: what a nat of log π/π_ref is worth in units of the reward."""
    desirable_weight: float = 1.0
    """λ_D: weight of good responses; λ_D·good : λ_U·bad should lie between 1 and 4/3."""
    undesirable_weight: float = 1.0
    """λ_U: weight of bad responses."""

    def __post_init__(self) -> None:
        _expect_positive(self, "beta")
        _expect_not_negative(self, "desirable_weight", "undesirable_weight")

    def reward(self, responses: Responses) -> Tensor:
        """β·(log π − log π_ref)."""
        return self.beta * responses.log_ratios

    def baseline(self, mean_log_ratio: Tensor) -> Tensor:
        """z, detached, from the mean log-ratio of mismatched prompts and responses in nats."""
        return self.beta * mean_log_ratio.detach().clamp(min=0)

    def __call__(self, responses: Responses, desirable: Tensor, baseline: Tensor) -> Tensor:
        """(B,) loss of each response.

        Args:
            responses: what was said to the prompts.
            desirable: (B,) bool, labelled good.
            baseline: () z.
        """
        return prospect(
            self.reward(responses),
            desirable,
            baseline,
            gain=self.desirable_weight,
            loss=self.undesirable_weight,
        )


def _expect_positive(loss: PreferenceLoss, *names: str) -> None:
    for name in names:
        if not getattr(loss, name) > 0:
            raise ValueError(f"{type(loss).__name__}.{name} must be positive, got {getattr(loss, name)}")


def _expect_not_negative(loss: PreferenceLoss, *names: str) -> None:
    for name in names:
        if not getattr(loss, name) >= 0:
            raise ValueError(f"{type(loss).__name__}.{name} must not be negative, got {getattr(loss, name)}")
