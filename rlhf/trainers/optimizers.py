"""The optimiser, as a component."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(kw_only=True, slots=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), in PyTorch's form (numerics D42)."""

    lr: float = 1e-5
    """Learning rate at the top of the schedule."""
    beta1: float = 0.9
    """Decay of the mean of gradients."""
    beta2: float = 0.999
    """Decay of the mean of squared gradients."""
    eps: float = 1e-5
    """Added to the root of the second moment: with 1e-8 the first steps would depend on signs alone."""
    weight_decay: float = 0.0
    """Decay per unit of learning rate, of matrices only: norms and biases are spared."""

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"AdamW.lr must be positive, got {self.lr}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"AdamW.{name} must be in [0, 1), got {getattr(self, name)}")
        if not self.eps > 0:
            raise ValueError(f"AdamW.eps must be positive, got {self.eps}")
        if not self.weight_decay >= 0:
            raise ValueError(f"AdamW.weight_decay must not be negative, got {self.weight_decay}")

    def __call__(self, module: nn.Module) -> torch.optim.AdamW:
        """An optimiser over the trainable parameters of ``module``."""
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        matrices = [parameter for parameter in parameters if parameter.dim() > 1]
        vectors = [parameter for parameter in parameters if parameter.dim() <= 1]
        groups = [
            {"params": matrices, "weight_decay": self.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            fused=True,  # one pass over parameters, gradients and moments
        )
