"""Three in ten comparisons are ties: dropped, taken for halves, or modelled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.comparisons.truth import Truth, fitted, judged_pairs
from rlhf.algorithms.preferences import BradleyTerry, Davidson, RaoKupper, RewardLoss
from rlhf.ops.ranking_losses import davidson_outcomes, outcome_loss

TIE_PROBABILITY = 0.37
"""Between equals; at the scores' spread 30 % of all comparisons are then ties."""
LOSSES: dict[str, RewardLoss] = {
    "Bradley–Terry, ties dropped": BradleyTerry(),
    "Bradley–Terry, ties are ½": BradleyTerry(),
    "Davidson": Davidson(tie_probability=TIE_PROBABILITY),
    "Davidson, half the tie probability": Davidson(tie_probability=TIE_PROBABILITY / 2),
    "Rao–Kupper": RaoKupper(tie_probability=TIE_PROBABILITY),
}
HELD_OUT = 20_000


def measured(comparisons: int, seed: int) -> list[dict[str, Any]]:
    """Every loss on the same comparisons."""
    truth = Truth.drawn(seed)
    train, held_out = (truth.responses(count, 2) for count in (comparisons, HELD_OUT))
    labels, held_labels = (truth.pair_labels(x, TIE_PROBABILITY) for x in (train, held_out))
    found = []
    for name, loss in LOSSES.items():
        kept = labels != 0.5 if "dropped" in name else torch.ones_like(labels, dtype=torch.bool)
        weight = fitted(loss, train[kept], judged_pairs(labels[kept]))
        found.append(
            {
                "experiment": "ties",
                "loss": name,
                "comparisons": comparisons,
                "seed": seed,
                "tie_share": float((held_labels == 0.5).double().mean()),
                **held_out_nats(weight, train, labels, held_out, held_labels),
                "floor": float(nats(gaps(truth.weight, held_out), held_labels, TIE_PROBABILITY).mean()),
            }
        )
    return found


def gaps(weight: Tensor, features: Tensor) -> Tensor:
    """(N,) score of the first response minus that of the second."""
    scores = features @ weight
    return scores[:, 0] - scores[:, 1]


def nats(gap: Tensor, labels: Tensor, tie_probability: float) -> Tensor:
    """(N,) −log-likelihood of win, tie and loss by Davidson's model."""
    return outcome_loss(davidson_outcomes(gap, tie_probability=tie_probability), labels)


def held_out_nats(
    weight: Tensor, train: Tensor, labels: Tensor, held_out: Tensor, held_labels: Tensor
) -> dict[str, float]:
    """Nats per held-out comparison: of all three outcomes, and of the winner where there is one.

    So that the scores alone are compared, every model is given the tie probability that makes the training
    comparisons likeliest. The second number needs none: −log σ(Δ).
    """
    gap = gaps(weight, train)
    grid = torch.linspace(0.02, 0.9, 89).tolist()
    best = min(grid, key=lambda p: float(nats(gap, labels, p).mean()))
    held_gap, decided = gaps(weight, held_out), held_labels != 0.5
    winners = BradleyTerry()(held_gap, torch.zeros_like(held_gap), torch.zeros_like(held_gap), held_labels)
    return {
        "nats": float(nats(held_gap, held_labels, best).mean()),
        "nats_decided": float(winners[decided].mean()),
    }
