"""Responses with features x and true scores w·x, judged at random as a model of comparisons says."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.algorithms.preferences import RewardLoss
from rlhf.batch import Comparisons
from rlhf.ops.ranking_losses import davidson_outcomes

FEATURES = 10
SPREAD = 1.5
"""Standard deviation of a true score."""
PENALTY = 1e-2
"""Of |w|², so that few judgements end at finite scores; the same for every loss."""


@dataclass(kw_only=True, slots=True)
class Truth:
    """A scoring of responses, and a source of responses."""

    weight: Tensor
    """(FEATURES,) float64."""
    generator: torch.Generator

    @classmethod
    def drawn(cls, seed: int) -> Truth:
        """A direction at random, and random numbers of its own."""
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(FEATURES, generator=generator, dtype=torch.float64)
        return cls(weight=SPREAD * weight / weight.norm(), generator=generator)

    def responses(self, prompts: int, count: int) -> Tensor:
        """(prompts, count, FEATURES) normal features."""
        return torch.randn(prompts, count, FEATURES, generator=self.generator, dtype=torch.float64)

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1)."""
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def pair_labels(self, features: Tensor, tie_probability: float) -> Tensor:
        """(prompts,) 1, ½ or 0: the first of two responses wins, ties or loses, by Davidson's model."""
        scores = features @ self.weight
        win, tie, _ = davidson_outcomes(scores[:, 0] - scores[:, 1], tie_probability=tie_probability)
        drawn = self.uniform(len(features))
        return torch.where(drawn < win.exp(), 1.0, torch.where(drawn < win.exp() + tie.exp(), 0.5, 0.0))

    def order(self, features: Tensor) -> Tensor:
        """(prompts, K) response numbers, best first: scores with Gumbel noise (Plackett and Luce).

        Any two responses are then in the order of Bradley and Terry: the first before the second with σ(Δ).
        """
        noise = -torch.log(-torch.log(self.uniform(*features.shape[:2]).clamp(min=1e-300)))
        return (features @ self.weight + noise).argsort(1, descending=True)


def judged_pairs(labels: Tensor) -> Comparisons:
    """Each prompt's first response against its second."""
    shape = (len(labels), 2, 2)
    compared, label = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
    compared[:, 0, 1], label[:, 0, 1] = True, labels.float()
    return Comparisons(compared=compared, label=label, margin=torch.zeros(shape))


def judged_orders(order: Tensor) -> Comparisons:
    """Every response against all that come after it."""
    prompts, K = order.shape
    compared = torch.zeros(prompts, K, K, dtype=torch.bool)
    for better in range(K):
        for worse in range(better + 1, K):
            compared[torch.arange(prompts), order[:, better], order[:, worse]] = True
    return Comparisons(compared=compared, label=compared.float(), margin=torch.zeros(prompts, K, K))


def fitted(loss: RewardLoss, features: Tensor, judged: Comparisons) -> Tensor:
    """(FEATURES,) weights at the minimum of a production loss, mean over prompts, and the penalty."""
    weight = torch.zeros(FEATURES, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = loss.prompts(features @ weight, judged).mean() + PENALTY * weight.square().sum()
        total.backward()
        return total

    optimizer.step(closure)
    return weight.detach()
